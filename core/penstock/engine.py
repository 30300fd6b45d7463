"""The limits engine: a claim goes through the hooks and the rules to the store, and comes back as a decision."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from penstock import rules
from penstock.circles import circle
from penstock.claim import Claim, ClaimKind, PoolsLike
from penstock.configured import Configured
from penstock.decision import Granted, Refused
from penstock.errors import StoreUnavailable
from penstock.explain import explain
from penstock.hooks import installed_plugins
from penstock.janitor import Janitor
from penstock.lease import Lease
from penstock.leases import Leases
from penstock.report import status
from penstock.request import Request
from penstock.session import ProcessSession
from penstock.settings import OnBlocked, Settings
from penstock.store.contract import ClaimState
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


class Engine(Configured):
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
        super().__init__(
            store,
            host,
            deployment,
            fingerprint=fingerprint,
            settings=settings or Settings.from_environment(),
            hook=(plugins or installed_plugins()).hook,
        )
        self._start()
        _engines.add(self)
        self.hook.penstock_engine_started(engine=self)

    def _start(self) -> None:
        self._closed = False
        self._lock = threading.Lock()
        self.leases = Leases(self.store, self.hook)
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

    # -- claims ------------------------------------------------------------------------------------------------------

    def request(
        self, claim: Claim, *, ticket: bool = False, probed: bool = False, eligible_after_seconds: float = 0.0
    ) -> Request:
        """A claim under way: the caller steps it, waits for it, hands it over or withdraws it.

        `ticket`: no process of ours stands behind it, its deadline moves at each step. `probed`: a run lease that lives
        on between processes because the host can be asked about the run.
        """
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
        request = self.request(claim)
        try:
            return request.try_step()
        except BaseException:
            request.forget()
            raise

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

    def session_id(self) -> str:
        """The live session of this process, opened at first use."""
        return self._session.open()

    def session_is_gone(self, session_id: str) -> None:
        """The store refused this session: everything under it is lost."""
        self._session.lose(session_id)

    def trusted(self, session_id: str) -> bool:
        """Whether what that session holds is still surely its own."""
        return self._session.trusted(session_id)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """As `in_thread`; wait for the result. Work once begun is finished, though the caller be cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self.in_thread(work)))

    def in_thread(self, work: Callable[[], T]) -> Future[T]:
        """Do the work in one of a few threads of this engine's own: the loop's may all be busy waiting for a slot."""
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
        Raises LeaseLost when the run of an op has ended.
        """
        held = self.standing(claim, again=True).held if claim.kind is ClaimKind.OP else {}
        inside = claim.parent_id is not None or any(key.startswith("pool:") for key in held)
        return circle(self.store.snapshot(), claim_id) if inside else ()

    def store_reasons(self, demands: Sequence[rules.Demand]) -> tuple[Reason, ...]:
        """What barred a claim that left no waiter, as the store stands now."""
        return self.store.reasons_against({demand.key: demand.slots for demand in demands})

    def close(self) -> None:
        """End this process's session with everything under it, and give back the connections. Again does nothing."""
        try:
            self.wakeups.close()
            self.janitor.close()
            if not self._closed:
                self._closed = True
                self.hook.penstock_engine_closed(engine=self)
            with self._lock:
                threads, self._threads = self._threads, None
            if threads is not None:
                threads.shutdown()
            self._session.close()
        finally:
            self.store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin_in_child(self) -> None:
        """A forked child inherits neither session nor leases nor connections."""
        self.store.on_granted.clear()
        self.store.after_fork()
        self._read_anew()
        self._start()


_engines: WeakSet[Engine] = WeakSet()


def _begin_in_child() -> None:
    """As soon as there is a child, while it has one thread: all that comes later finds what is its own."""
    for engine in list(_engines):
        engine._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
