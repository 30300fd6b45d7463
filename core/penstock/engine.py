"""The limits engine: a claim goes through the hooks and the rules to the store, and comes back as a decision."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from penstock import rules
from penstock.claim import Claim, ClaimKind, PoolsLike, parse_pools
from penstock.config import Concurrency
from penstock.decision import Granted, Refused
from penstock.errors import LeaseLost
from penstock.hooks import installed_plugins
from penstock.lease import Lease
from penstock.report import demand_reasons, reasons_for, status
from penstock.request import Request
from penstock.session import ProcessSession
from penstock.settings import Settings

if TYPE_CHECKING:
    import pluggy

    from penstock.decision import Reason
    from penstock.store.contract import Snapshot, Store

log = logging.getLogger("penstock.engine")
OnBlocked = Literal["wait", "skip", "fail"]


class Engine:
    """The face of Penstock in one process. Safe to share between threads; a forked child starts with a clean one."""

    def __init__(
        self,
        store: Store,
        *,
        host: str = "process",
        deployment: str = "process",
        settings: Settings | None = None,
        plugins: pluggy.PluginManager | None = None,
    ) -> None:
        self.store, self.host, self.deployment = store, host, deployment
        self.settings = settings or Settings.from_environment()
        self.hook = (plugins or installed_plugins()).hook
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._leases: dict[str, Lease] = {}
        self._requested: set[str] = set()
        self._configuration: tuple[int, Concurrency] | None = None
        self._session = ProcessSession(
            self.store,
            self.host,
            self.deployment,
            self.settings,
            known=self._known_claims,
            on_lost=self._session_lost,
            on_idle=self.sweep_if_due,
        )
        self._sweep_at = 0.0
        self._probe_at = 0.0

    # -- claims ------------------------------------------------------------------------------------------------------

    def claim(
        self,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        run_id: str | None = None,
        op_id: str | None = None,
        attempt: int = 1,
        in_run: bool = False,
        url: str | None = None,
    ) -> Claim:
        """An op claim of this installation. Raises ClaimError on unusable names or slots."""
        return Claim(
            kind=ClaimKind.OP,
            host=self.host,
            deployment=self.deployment,
            run_id=run_id,
            op_id=op_id,
            attempt=attempt,
            pools=parse_pools(pools),
            tags=tags or {},
            priority=priority,
            in_run=in_run,
            url=url,
        )

    def run_claim(
        self,
        run_id: str,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        url: str | None = None,
    ) -> Claim:
        """A run claim of this installation; all who make it for one run id share its lease."""
        return Claim(
            kind=ClaimKind.RUN,
            host=self.host,
            deployment=self.deployment,
            run_id=run_id,
            pools=parse_pools(pools),
            tags=tags or {},
            priority=priority,
            url=url,
        )

    def request(
        self, claim: Claim, *, ticket: bool = False, probed: bool = False, eligible_after_seconds: float = 0.0
    ) -> Request:
        """A claim under way: the caller steps it, waits for it, hands it over or withdraws it.

        `ticket`: no process of ours stands behind it, its deadline moves at each step. `probed`: a run lease that lives
        on between processes because the host can be asked about the run.
        """
        self._check_process()
        for enriched in self.hook.penstock_enrich_claim(claim=claim):
            claim = enriched if enriched is not None else claim
        return Request(self, claim, ticket=ticket, probed=probed, eligible_after_seconds=eligible_after_seconds)

    def acquire(
        self,
        claim: Claim,
        *,
        on_blocked: OnBlocked = "wait",
        wait_timeout_seconds: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Lease:
        """The claim's lease, after waiting for it.

        Raises WaitTimeout, Blocked, Skipped (as `on_blocked` says), ImpossibleClaim, StoreUnavailable.
        """
        return self.request(claim).acquire(on_blocked, wait_timeout_seconds, cancelled)

    async def acquire_async(
        self, claim: Claim, *, on_blocked: OnBlocked = "wait", wait_timeout_seconds: float | None = None
    ) -> Lease:
        """As `acquire`, without blocking the event loop; a cancelled wait leaves neither waiter nor lease."""
        return await self.request(claim).acquire_async(on_blocked, wait_timeout_seconds)

    def try_acquire(self, claim: Claim) -> Granted | Refused:
        """Now or not at all: leaves no waiter. Of N at once with room for one, exactly one is granted."""
        return self.request(claim).try_step()

    @contextmanager
    def hold(
        self,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        wait_timeout_seconds: float | None = None,
        on_blocked: OnBlocked = "wait",
        run_id: str | None = None,
        run_tags: Mapping[str, str] | None = None,
        op_id: str | None = None,
    ) -> Iterator[Lease]:
        """Hold slots of pools for the length of a block; with `run_id` inside that run's lease.

        Raises as `acquire`. Does not raise LeaseLost by itself: look at `lease.lost`, or add to `lease.on_lost`.
        """
        run_lease = None
        if run_id is not None:
            run_lease = self.acquire(
                self.run_claim(run_id, tags=run_tags, priority=priority),
                on_blocked=on_blocked,
                wait_timeout_seconds=wait_timeout_seconds,
            )
        try:
            claim = self.claim(
                *pools, tags=tags, priority=priority, run_id=run_id, op_id=op_id, in_run=run_lease is not None
            )
            with self.acquire(claim, on_blocked=on_blocked, wait_timeout_seconds=wait_timeout_seconds) as lease:
                yield lease
        finally:
            if run_lease is not None:
                run_lease.release()

    @asynccontextmanager
    async def hold_async(
        self,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        wait_timeout_seconds: float | None = None,
        on_blocked: OnBlocked = "wait",
        run_id: str | None = None,
        run_tags: Mapping[str, str] | None = None,
        op_id: str | None = None,
    ) -> AsyncIterator[Lease]:
        """As `hold`, on an event loop."""
        run_lease = None
        if run_id is not None:
            run_lease = await self.acquire_async(
                self.run_claim(run_id, tags=run_tags, priority=priority),
                on_blocked=on_blocked,
                wait_timeout_seconds=wait_timeout_seconds,
            )
        try:
            claim = self.claim(
                *pools, tags=tags, priority=priority, run_id=run_id, op_id=op_id, in_run=run_lease is not None
            )
            lease = await self.acquire_async(claim, on_blocked=on_blocked, wait_timeout_seconds=wait_timeout_seconds)
            with lease:
                yield lease
        finally:
            if run_lease is not None:
                run_lease.release()

    # -- what a lease and a request need -----------------------------------------------------------------------------

    def configuration(self, *, fresh: bool = False) -> tuple[int, Concurrency]:
        """(version, configuration) as last read; `fresh` reads it again."""
        if fresh or self._configuration is None:
            stored = self.store.configuration()
            self._configuration = (stored.version, Concurrency.from_document(stored.document))
        return self._configuration

    def demands(self, claim: Claim, concurrency: Concurrency) -> tuple[rules.Demand, ...]:
        """What a claim must pass under this configuration, plugins heard."""
        demands = rules.demands(claim, concurrency)
        for adjusted in self.hook.penstock_adjust_demands(claim=claim, demands=demands, concurrency=concurrency):
            demands = tuple(sorted(adjusted)) if adjusted is not None else demands
        return demands

    def session_id(self) -> str:
        """The live session of this process, opened at first use."""
        self._check_process()
        return self._session.open()

    def session_is_gone(self, session_id: str) -> None:
        """The store refused this session: everything under it is lost."""
        self._session.lose(session_id)

    def trusted(self, session_id: str) -> bool:
        """Whether what that session holds is still surely its own."""
        return self._session.trusted(session_id)

    def requested(self, claim_id: str) -> None:
        """This process answers for the claim from now on; a beat ends those of its session that nobody answers for."""
        with self._lock:
            self._requested.add(claim_id)

    def forget(self, claim_id: str) -> None:
        """This process does not answer for the claim any more."""
        with self._lock:
            self._requested.discard(claim_id)

    def held(self, claim: Claim) -> Lease | None:
        """This process's own lease of the same holder, counted once more; None if it has none."""
        holder = claim.holder
        with self._lock:
            for lease in self._leases.values() if holder is not None else ():
                if lease.claim.holder == holder and not lease.lost:
                    lease.holds += 1
                    return lease
        return None

    def lease(self, claim_id: str) -> Lease | None:
        """This process's lease of that claim, not counted again."""
        with self._lock:
            return self._leases.get(claim_id)

    def granted(self, lease: Lease) -> Lease:
        """Keep a new lease; the same claim granted to two threads at once is one lease, held twice."""
        with self._lock:
            known = self._leases.get(lease.claim_id)
            if known is not None:
                known.holds += 1
                return known
            self._leases[lease.claim_id] = lease
        self.hook.penstock_granted(lease=lease, waited_seconds=lease.waited_seconds)
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back; the last of several holds in this process frees the slots."""
        with self._lock:
            lease.holds -= 1
            if lease.holds > 0 or lease.claim_id not in self._leases:
                return
            # Forgotten before it is told to the store: should that fail, the next beat ends what nobody answers for.
            del self._leases[lease.claim_id]
            self._requested.discard(lease.claim_id)
        if not self.store.release(lease.claim_id, lease.session_id):
            log.warning("%s had been lost before it was released", lease)
        self.hook.penstock_released(lease=lease, held_seconds=time.monotonic() - lease.granted_at)

    def hand_over(self, lease: Lease, *, seconds: float) -> str:
        """Turn a lease of this process into a ticket. Raises LeaseLost if it was not ours any more."""
        if lease.session_id is not None and not self.store.hand_over(
            lease.claim_id, lease.session_id, ticket_seconds=seconds
        ):
            raise LeaseLost(f"{lease.claim.label}: the lease was lost before it could be handed over; claim again")
        with self._lock:
            self._leases.pop(lease.claim_id, None)
        self.forget(lease.claim_id)
        return lease.claim_id

    def sweep_if_due(self) -> None:
        """Reap and grant, at most once in `sweep_seconds` in this process; ask now and then after probed runs."""
        now = time.monotonic()
        with self._lock:
            if now < self._sweep_at:
                return
            self._sweep_at = now + self.settings.sweep_seconds
            probe = now >= self._probe_at
            if probe:
                self._probe_at = now + 20 * self.settings.sweep_seconds
        if probe and self.hook.penstock_holder_alive.get_hookimpls():
            self.probe()
        if not self.store.configuration_is_settled():
            from penstock.changes import settle_all  # noqa: PLC0415  # upkeep after a crash, off the usual path

            settle_all(self)
        self.store.sweep()

    def probe(self) -> int:
        """Ask the hosts about runs that no process stands behind; end the leases of those that are over. How many."""
        ended = 0
        for row in self.store.snapshot().claims:
            if row.probed and self.hook.penstock_holder_alive(claim=row) is False:
                ended += self.store.end(row.claim.claim_id, reason="the host says that the run is over")
        return ended

    # -- looking, and the end ----------------------------------------------------------------------------------------

    def end_run(self, run_id: str) -> bool:
        """Free the run lease of a run of this installation that is over. False if there was none."""
        holder = self.run_claim(run_id).holder
        claim_id = self.store.live_claim(holder) if holder is not None else None
        return claim_id is not None and self.store.end(claim_id, reason="the run is over")

    def snapshot(self) -> Snapshot:
        """Everything live in the store."""
        return self.store.snapshot()

    def status(self) -> dict[str, Any]:
        """Limits, leases, waiters and sessions as plain values: the JSON of `penstock status`."""
        return status(self.store.snapshot(), self.configuration(fresh=True)[1])

    def reasons(self, claim_id: str) -> tuple[Reason, ...]:
        """Why a waiter waits, limit by limit; empty when it does not."""
        return reasons_for(self.store.snapshot(), claim_id)

    def store_reasons(self, demands: Sequence[rules.Demand]) -> tuple[Reason, ...]:
        """What barred a claim that left no waiter, as the store stands now."""
        return demand_reasons(self.store.snapshot(), demands)

    def close(self) -> None:
        """End this process's session with everything under it, and give back the connections."""
        try:
            if self._pid == os.getpid():
                self._session.close()
        finally:
            self.store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _known_claims(self) -> set[str]:
        with self._lock:
            return self._requested | set(self._leases)

    def _session_lost(self, session_id: str) -> None:
        with self._lock:
            lost = [lease for lease in self._leases.values() if lease.session_id == session_id]
            for lease in lost:
                del self._leases[lease.claim_id]
        for lease in lost:
            if lease.mark_lost():
                self.hook.penstock_lost(lease=lease)

    def _check_process(self) -> None:
        """A forked child inherits neither session nor leases nor connections."""
        if self._pid != os.getpid():
            self.store.after_fork()
            self._start()
