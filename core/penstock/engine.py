"""The limits engine: a claim goes through the hooks and the rules to the store, and comes back as a decision."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from penstock import rules
from penstock.circles import circle
from penstock.claim import Claim, ClaimKind, PoolsLike, parse_pools
from penstock.config import Concurrency, check_within
from penstock.decision import Granted, Refused
from penstock.errors import ClaimError, LeaseLost, StoreUnavailable
from penstock.explain import explain
from penstock.hooks import installed_plugins
from penstock.janitor import Janitor
from penstock.lease import Lease
from penstock.leases import Leases
from penstock.report import status
from penstock.request import Request
from penstock.session import ProcessSession
from penstock.settings import OnBlocked, Settings
from penstock.store.contract import ClaimState, Deployment
from penstock.wakeups import Wakeups

if TYPE_CHECKING:
    import pluggy

    from penstock.circles import Link
    from penstock.decision import Reason
    from penstock.hookspecs import Why
    from penstock.store.contract import Snapshot, Store

log = logging.getLogger("penstock.engine")
T = TypeVar("T")
ASYNC_THREADS = 4
"""Threads for all event loops of one engine: as many as it has connections for claims."""


class Engine:
    """The face of Penstock in one process. Safe to share between threads; a forked child starts with a clean one."""

    def __init__(
        self,
        store: Store,
        *,
        host: str = "process",
        deployment: str = "process",
        fingerprint: str | None = None,
        settings: Settings | None = None,
        plugins: pluggy.PluginManager | None = None,
    ) -> None:
        self.store, self.host, self.deployment = store, host, deployment
        self._fingerprint = fingerprint
        self._checked = False
        self.settings = settings or Settings.from_environment()
        self.hook = (plugins or installed_plugins()).hook
        self._start()
        self.hook.penstock_engine_started(engine=self)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self.leases = Leases(self.store, self.hook)
        self._configuration: tuple[int, Concurrency] | None = None
        self.janitor = Janitor(self)
        self._session = ProcessSession(
            self.store,
            self.host,
            self.deployment,
            self.settings,
            known=self.leases.known,
            on_lost=self.leases.lose,
            on_beat=self.leases.leave_forgotten,
            on_idle=self.janitor.sweep_if_due,
        )
        self.wakeups = Wakeups(self.store, self.settings, lambda: self._session.current, self.janitor.sweep_if_due)
        self._threads: ThreadPoolExecutor | None = None
        self._room_seen: tuple[float, Mapping[str, int]] = (-math.inf, {})

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
        parent_id: str | None = None,
        name: str | None = None,
        step: str | None = None,
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
            parent_id=parent_id,
            name=name,
            step=step,
            url=url,
        )

    def run_claim(
        self,
        run_id: str,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        within: Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        name: str | None = None,
        url: str | None = None,
    ) -> Claim:
        """A run claim of this installation; all who make it for one run id share its lease.

        `parent_id` is the lease that waits for this run to end, where one does: what tells a circle of waits.

        `within` are the run's own limits on its ops, as in the configuration's `ops` block; the first claim of a run
        fixes them. Raises ClaimError when they are wrong.
        """
        if within is not None:
            check_within(within)
        return Claim(
            kind=ClaimKind.RUN,
            host=self.host,
            deployment=self.deployment,
            run_id=run_id,
            pools=parse_pools(pools),
            tags=tags or {},
            priority=priority,
            within=within,
            parent_id=parent_id,
            name=name,
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
        if claim.step is not None and any(fnmatchcase(claim.step, glob) for glob in self.settings.pool_per_op):
            claim = replace(claim, pools={**claim.pools, rules.op_pool(claim): 1})
        if claim.url is None:
            claim = replace(claim, url=self.hook.penstock_holder_url(claim=claim))
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
            try:
                yield lease
            finally:
                await self.off_loop(lease.release)
        finally:
            if run_lease is not None:
                await self.off_loop(run_lease.release)

    # -- what a lease and a request need -----------------------------------------------------------------------------

    def configuration(self, *, fresh: bool = False) -> tuple[int, Concurrency]:
        """(version, configuration) as last read; `fresh` reads it again.

        The first look also registers the installation: raises DeploymentConflict when another one has its name.
        """
        if not self._checked:
            self.store.check_schema()
            self._checked = True
        if self._fingerprint is not None:
            self.store.register(Deployment(self.host, self.deployment, self._fingerprint))
            self._fingerprint = None
        if fresh or self._configuration is None:
            stored = self.store.configuration()
            self._configuration = (stored.version, Concurrency.from_document(stored.document))
        return self._configuration

    def standing(self, claim: Claim, *, again: bool = False) -> rules.Standing:
        """What is held around an op: by its run, and by the op around a nested block.

        Raises ClaimError for an op of a run under limits whose run has not even been claimed; LeaseLost when that had
        been so `again` a moment ago.
        """
        if claim.kind is not ClaimKind.OP:
            return rules.ALONE
        outer = self.leases.find(claim.parent_id) if claim.parent_id is not None else None
        held = _slots_by_limit(outer)
        nested = bool(held) and outer is not None and outer.claim.kind is ClaimKind.OP
        if not claim.in_run:
            return rules.Standing(held, nested=nested)
        run = self.store.run_lease(self.run_claim(claim.run_id or "").holder or "")
        if run is None and again:
            raise LeaseLost(
                f"{claim.label}: the lease of its run ended or was lost while it waited; claim the run again"
            )
        if run is None:
            raise ClaimError(
                f"{claim.label}: its run has no lease; claim the run first (engine.run_claim), or claim without in_run"
            )
        return rules.Standing(
            held={**run.held, **held},
            within=run.within,
            run_claim_id=run.claim_id,
            run_waits=run.state not in (ClaimState.HELD, ClaimState.GRANTED),
            run_skipped=run.state is ClaimState.SKIPPED,
            nested=nested,
        )

    def demands(
        self, claim: Claim, concurrency: Concurrency, standing: rules.Standing = rules.ALONE
    ) -> tuple[rules.Demand, ...]:
        """What a claim must pass under this configuration, plugins heard."""
        demands = rules.demands(claim, concurrency, standing)
        for adjusted in self.hook.penstock_adjust_demands(claim=claim, demands=demands, concurrency=concurrency):
            demands = tuple(sorted(adjusted)) if adjusted is not None else demands
        return demands

    def root_pools_full(self, claim: Claim, concurrency: Concurrency) -> tuple[str, ...]:
        """The pools for which a run is held back that has not begun: those of its roots, all of them full.

        Empty when it may start, and for a run that no limit bounds: nobody else could use what it would take. Of
        several runs that look at once more than one may find the same room; which comes first is left to chance.
        """
        if not claim.roots or not all(claim.roots):
            return ()
        if all(demand.capacity is None for demand in self.demands(claim, concurrency)):
            return ()
        return rules.root_pools_full(claim.roots, self._room(), concurrency)

    def _room(self) -> Mapping[str, int]:
        """Pool → free slots less those that waiters want. All claims of this process share one look in a while."""
        now = time.monotonic()
        read_at, room = self._room_seen
        if now - read_at >= self.settings.poll_max_seconds:
            rows = [(row.key.partition(":"), row) for row in self.store.limit_rows()]
            room = {
                name: row.capacity - row.held - row.waiting
                for (kind, _, name), row in rows
                if kind == rules.LimitKind.POOL and row.capacity is not None
            }
            self._room_seen = (now, room)
        return room

    def session_id(self) -> str:
        """The live session of this process, opened at first use."""
        self._check_process()
        return self._session.open()

    def session_is_gone(self, session_id: str) -> None:
        """The store refused this session: everything under it is lost."""
        self._session.lose(session_id)

    def trusted(self, session_id: str) -> bool:
        """Whether what that session holds is still surely its own."""
        return self._pid == os.getpid() and self._session.trusted(session_id)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """As `in_thread`; wait for the result. Work once begun is finished, though the caller be cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self.in_thread(work)))

    def in_thread(self, work: Callable[[], T]) -> Future[T]:
        """Do the work in one of a few threads of this engine's own: the loop's may all be busy waiting for a slot."""
        self._check_process()
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(ASYNC_THREADS, thread_name_prefix="penstock-async")
            return self._threads.submit(copy_context().run, work)

    def refused(self, claim: Claim, reasons: Sequence[Reason], why: Why, waited_seconds: float = 0.0) -> Refused:
        """Not admitted; the plugins are told."""
        self.hook.penstock_refused(claim=claim, reasons=reasons, why=why, waited_seconds=waited_seconds)
        return Refused(tuple(reasons), impossible=why == "impossible")

    def without_limits(self, claim: Claim) -> Lease:
        """A lease with nothing behind it: enforcement is off, or the store is away and that is not to matter."""
        lease = Lease(self, claim, claim.claim_id, (), None, 0.0)
        lease.unlimited = True
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back. A forked child gives back nothing of its parent's. Raises StoreUnavailable."""
        self._check_process()
        try:
            self.leases.release(lease)
        except StoreUnavailable:
            self._session.beat_soon()  # which ends what nobody answers for
            raise

    # -- looking, and the end ----------------------------------------------------------------------------------------

    def end_run(self, run_id: str, *, ended_seconds_ago: float | None = None) -> bool:
        """Free the run lease of a run of this installation that is over. False if there was none.

        With `ended_seconds_ago` a probed lease stays that somebody has spoken up for since: the run has begun again.
        """
        holder = self.run_claim(run_id).holder
        run = self.store.run_lease(holder) if holder is not None else None
        if run is None:
            return False
        if run.expires_at is not None and ended_seconds_ago is not None:
            waits = run.state in (ClaimState.WAITING, ClaimState.PARKED, ClaimState.GRANTED)
            kept_seconds = self.settings.ticket_seconds if waits else self.settings.run_probe_seconds
            ended_at = self.store.snapshot_time() - ended_seconds_ago * 1_000_000
            if run.expires_at - kept_seconds * 1_000_000 > ended_at:
                return False
        return self.store.end(run.claim_id, reason="the run is over", expires_at=run.expires_at)

    def end_op(self, claim: Claim, *, reason: str) -> bool:
        """End what stands in the store for this attempt of an op, waiting or held, whoever keeps it. False if nothing.

        For a host that knows the attempt to be over.
        """
        live = self.store.run_lease(claim.holder) if claim.holder is not None else None
        return live is not None and self.store.end(live.claim_id, reason=reason)

    def snapshot(self) -> Snapshot:
        """Everything live in the store."""
        return self.store.snapshot()

    def status(self) -> dict[str, Any]:
        """Limits, leases, waiters and sessions as plain values: the JSON of `penstock status`."""
        return status(self.store.snapshot(), self.configuration(fresh=True)[1])

    def explain(self, identifier: str, *, most: int | None = None) -> dict[str, Any]:
        """What an id names (a claim, else a run, else an op), and why it waits or what it holds, as plain values.

        The JSON of `penstock explain`; `matches`, all or `most` of them, are none when the id names nothing that lives.
        """
        return explain(self.store.snapshot(), identifier, self.configuration(fresh=True)[0], most=most)

    def reasons(self, claim_id: str) -> tuple[Reason, ...]:
        """Why a waiter waits, limit by limit; empty when it does not."""
        return self.store.reasons(claim_id)

    def circle(self, claim: Claim, claim_id: str) -> tuple[Link, ...]:
        """The circle in which this waiter waits for itself, through others.

        Empty, too, where none can begin: outside of every lease that holds a pool. To look costs a look at every claim.
        """
        held = self.standing(claim).held if claim.kind is ClaimKind.OP else {}
        inside = claim.parent_id is not None or any(key.startswith("pool:") for key in held)
        return circle(self.store.snapshot(), claim_id) if inside else ()

    def store_reasons(self, demands: Sequence[rules.Demand]) -> tuple[Reason, ...]:
        """What barred a claim that left no waiter, as the store stands now."""
        return self.store.reasons_against({demand.key: demand.slots for demand in demands})

    def close(self) -> None:
        """End this process's session with everything under it, and give back the connections. Again does nothing."""
        try:
            if self._pid == os.getpid():
                self.wakeups.close()
                if not self._closed:
                    self._closed = True
                    self.hook.penstock_engine_closed(engine=self)
                if self._threads is not None:
                    self._threads.shutdown()
                    self._threads = None
                self._session.close()
        finally:
            self.store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_process(self) -> None:
        """A forked child inherits neither session nor leases nor connections."""
        if self._pid != os.getpid():
            self.store.on_granted.clear()
            self.store.after_fork()
            self._start()


def _slots_by_limit(lease: Lease | None) -> dict[str, int]:
    return dict(Counter(slot.limit for slot in lease.slots)) if lease is not None else {}
