"""A claim on its way through the gate: asked, waited for, shown, held and given back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from penstock.claim import ClaimKind, run_pool_claim
from penstock.config import Granularity
from penstock.errors import ClaimError, LeaseLost, Skipped, StoreUnavailable
from penstock.report import describe
from penstock.store.contract import ClaimState
from penstock.waiting import Cancelled
from prefect.states import Completed
from prefect.transactions import get_transaction

from penstock_prefect import facts
from penstock_prefect.absence import Absence
from penstock_prefect.attempts import Attempt, Kind
from penstock_prefect.claims import Limits, Standing
from penstock_prefect.giving_up import Ended, left_behind, torn_down
from penstock_prefect.showing import SHOWN_AFTER_SECONDS, Shown
from penstock_prefect.suspended import is_suspended, keep

if TYPE_CHECKING:
    import logging

    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request

CANCEL_POLL_SECONDS = 0.2
T = TypeVar("T")


def run_lives(engine: Engine, standing: Standing) -> bool:
    """Whether the run of that standing has its lease still, as far as the store can be asked."""
    try:
        engine.configuration()  # the first question makes sure of the store
        return engine.store.run_lease(engine.run_claim(standing.run_id or "").holder or "") is not None
    except StoreUnavailable:
        return True  # the claim waits for the store, and then finds out


class Passage:
    """One attempt's. `claimed` makes of what is around it the claim, None where nothing is to be asked, and what the
    attempt stands under with it. `engine` is None where nothing is limited.

    `refused`: it is to be skipped already. `lease` is what it has in hand: whoever makes a passage gives that back,
    however the attempt ends.
    """

    def __init__(
        self,
        engine: Engine | None,
        limits: Limits,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        kind: Kind,
        outer: Standing,
        claimed: Callable[[Standing], tuple[Claim | None, Standing]],
        *,
        refused: Skipped | None = None,
    ) -> None:
        self._refused = refused
        self.lease: Lease | None = None
        self._engine, self._limits, self._logger, self._kind = engine, limits, logger, kind
        self._claimed = claimed
        self._request: Request | None = None
        self._blocks_loop = False
        self._claim_under(outer)

    def _claim_under(self, outer: Standing) -> None:
        self._outer = outer
        self._claim, self._standing = self._claimed(outer)
        if self._engine is not None and self._kind in ("flow", "subflow"):
            self._standing = replace(self._standing, ended=threading.Event())
        if self._kind == "flow":
            self._standing = replace(self._standing, absence=Absence())
        self._absence = outer.absence
        self._absences = outer.absence.past if outer.absence is not None else 0
        self._shown = Shown(self._logger)

    def acquire(self) -> Attempt:
        """Wait for the lease as the limits say, in this thread."""
        self._blocks_loop = _loop_runs_here()
        if self._refused is not None:
            return self._skip(self._refused)
        while True:
            ended = self._ended()
            try:
                for request in self._requests():
                    with self._told(request):
                        how = self._limits.on_blocked, self._limits.wait_timeout_seconds
                        self.lease = request.acquire(*how, cancelled=ended)
                        if ended.is_set():
                            raise torn_down()
                return self._passed()
            except Skipped as skipped:
                return self._skip(skipped)
            except (ClaimError, LeaseLost):
                while self._run_is_absent(ended):
                    time.sleep(CANCEL_POLL_SECONDS)
                if not self._claims_anew(ended):
                    raise

    async def acquire_async(self) -> Attempt:
        """As `acquire`, on the event loop."""
        if self._refused is not None:
            return await self.off_loop(partial(self._skip, self._refused))
        while True:
            ended = self._ended()
            try:
                for request in self._requests():
                    with self._told(request):
                        await self._await(request, ended)
                return self._passed()
            except Skipped as skipped:
                return await self.off_loop(partial(self._skip, skipped))
            except (ClaimError, LeaseLost):
                while self._run_is_absent(ended):
                    await asyncio.sleep(CANCEL_POLL_SECONDS)
                if not await self.off_loop(partial(self._claims_anew, ended)):
                    raise

    def give_back(self) -> None:
        """End what is in hand, if anything is."""
        lease, self.lease = self.lease, None
        if lease is None or lease.claim.kind is ClaimKind.RUN_POOL:  # the run keeps that
            return
        absence = self._standing.absence if self._kind == "flow" else None
        try:
            for taken in [lease, *(absence.taken if absence is not None else [])]:
                taken.release()
        except StoreUnavailable as error:
            # The work is done and its result is good: the run does not fail for this.
            self._logger.error("The slots could not be given back; they are freed when they expire: %s", error)

    def leave_suspended(self, state: Any) -> None:
        """Where the run is suspended, and keeps its slots then: leave them in the store."""
        engine, standing = self._engine, self._standing
        if engine is None or self._kind not in ("flow", "subflow") or not is_suspended(state):
            return
        lease = self.lease if self._kind == "flow" else engine.leases.find(standing.run_claim_id or "")
        if standing.absence is not None and standing.absence.taken:
            lease = standing.absence.taken[-1]
        if lease is not None:
            keep(engine, engine.leases.find(lease.claim_id), standing.run_pools)

    async def give_back_async(self) -> None:
        """As `give_back`, off the event loop. Once begun it is finished, though this be cancelled."""
        if self.lease is not None:
            with anyio.CancelScope(shield=True):  # a timeout that ends the attempt finds the slots free
                await self.off_loop(self.give_back)

    def _ended(self) -> Ended:
        engine, standing = self._engine, self._standing
        in_run = engine is not None and standing.run_id is not None and self._kind in ("task", "block")
        lives = partial(run_lives, engine, standing) if engine is not None and in_run else None
        return Ended(self._outer.ended, lives)

    def _requests(self) -> Iterator[Request]:
        """What is to be acquired, one after the other; the last one's lease is this attempt's."""
        engine, claim = self._engine, self._claim
        if engine is None or claim is None:
            return
        if self._kind == "subflow" and self._standing.run_claim_id is not None:
            # A subflow is no op that could have its run take a pool of run granularity.
            _, concurrency = engine.configuration()
            late = {n: s for n, s in claim.pools.items() if concurrency.pool_granularity(n) is Granularity.RUN}
            for name, slots in sorted(late.items()):
                yield engine.request(run_pool_claim(claim, self._standing.run_claim_id, name, slots))
            claim = replace(claim, pools={n: s for n, s in claim.pools.items() if n not in late})
            if not claim.pools:
                return
        request = engine.request(claim)
        if request.claim.pools or request.claim.in_run or self._kind == "flow":
            yield request

    async def _await(self, request: Request, ended: Ended) -> None:
        """Watches for the end of the flow besides: nobody cancels the event loop of a task in a thread of Prefect's."""
        how = self._limits.on_blocked, self._limits.wait_timeout_seconds
        waiting = asyncio.ensure_future(request.acquire_async(*how))
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=CANCEL_POLL_SECONDS)
                if await self.off_loop(ended.is_set) if ended.is_io else ended.is_set():
                    raise torn_down()
        except asyncio.CancelledError:
            waiting.cancel()
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self.lease = waiting.result()
            raise
        self.lease = waiting.result()

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Do the work in a thread, where it may be I/O."""
        return work() if self._engine is None else await self._engine.off_loop(work)

    def _run_is_absent(self, ended: Ended) -> bool:
        """Whether the run around has given its slots back for a while. Raises CancelledError when it is torn down."""
        if self._absence is None or self._absence.is_over:
            return False
        if ended.is_set():
            raise torn_down()
        return True

    def _claims_anew(self, ended: Ended) -> bool:
        """Whether the claim failed since its run had no lease; it is then made anew, outside of the run where that has
        none any more.

        The run's lease was lost while the store was away, or the run is over and a task of it goes on: what the run
        held it does not cover any more. A run that was absent for a while has its slots again.
        """
        engine, claim, request = self._engine, self._claim, self._request
        if engine is None or claim is None or not claim.in_run:
            return False
        was_absent = self._absence is not None and self._absence.past > self._absences
        lives = run_lives(engine, self._outer)
        if lives and not was_absent:
            return False
        if request is not None and not (lives and claim.holder):  # one that its new claim finds keeps its place
            with suppress(StoreUnavailable):  # the next beat ends what nobody answers for
                request.withdraw()
        if lives:
            self._claim_under(self._outer)
            return True
        if left_behind() or ended.is_set():
            raise torn_down()
        self._logger.warning(
            "The run has no slots any more, they were lost or the run is over: this goes on outside of it, "
            "under the limits of its own pools alone"
        )
        self._claim_under(replace(self._outer, run_id=None, run_claim_id=None, run_pools={}))
        return True

    @contextmanager
    def _told(self, request: Request) -> Iterator[None]:
        """Shows what the request waits for, and that it does not any more. Cancelled becomes what Prefect raises."""
        self._request = request
        request.tell, request.tell_after_seconds = partial(self._tell, request), SHOWN_AFTER_SECONDS
        try:
            yield
        except BaseException as error:
            self._shown.not_granted(request.claim, error, time.monotonic() - request.started_at)
            if isinstance(error, Cancelled):
                raise torn_down() from None
            raise

    def _tell(self, request: Request, reasons: Any) -> None:
        if not self._shown.waited:
            if self._blocks_loop:
                self._logger.warning(
                    "This wait blocks the event loop: a holder on the same loop could never finish. "
                    "Make the function async, or submit it to the task runner"
                )
            if self._kind != "block" and facts.timed_by_prefect("task" if self._kind == "task" else "flow"):
                self._logger.warning("This wait counts against timeout_seconds: put @limited above @task or @flow")
        self._shown.waits(request.claim, reasons, time.monotonic() - request.started_at)

    def _passed(self) -> Attempt:
        standing, lease = self._standing, self.lease
        if lease is None:  # there was nothing to ask for
            return self._placed(replace(standing, op_claim_id=None) if self._kind == "task" else standing)
        self._shown.granted(lease)
        # Told by the thread that beats: this run's context says which server is to hear of it.
        context = copy_context()
        lease.on_lost.append(lambda lost: context.run(self._shown.lost, lost))
        if self._kind == "flow" and lease.unlimited:
            # Without a lease of its run no task of it would be let in: none stands under it.
            standing = Standing(priority=standing.priority, ended=standing.ended)
        elif self._kind == "flow":
            standing = replace(standing, run_claim_id=lease.claim_id)
        elif self._kind != "subflow":
            standing = replace(standing, op_claim_id=lease.claim_id)
        return self._placed(replace(standing, lease=lease))

    def _placed(self, standing: Standing) -> Attempt:
        if self._kind in ("flow", "subflow") and standing.run_id is not None:
            facts.carry(standing.as_dict())
        return Attempt(standing, self._kind)

    def _skip(self, skipped: Skipped) -> Attempt:
        if self._kind == "block":
            raise skipped
        reason = describe(skipped.reasons) if skipped.reasons else str(skipped)
        self._logger.info("Skipped, not waiting for slots: %s", reason)
        if self._kind == "task" and (transaction := get_transaction()) is not None:
            # Otherwise the empty result would be cached, and later runs would take it for the real one.
            transaction.write_on_commit = False
        if self._kind == "flow":
            self._forget_skipped_run()
        return Attempt(self._standing, self._kind, skipped=Completed(name="Skipped", message=reason))

    def _forget_skipped_run(self) -> None:
        """A run that was skipped stays so for its later ops; this one has none, but somebody may start it again."""
        engine, claim = self._engine, self._claim
        if engine is None or claim is None:
            return
        try:
            run = engine.store.run_lease(claim.holder or "")
            if run is not None and run.state is ClaimState.SKIPPED:
                engine.store.end(run.claim_id, reason="the run is over", expires_at=run.expires_at)
        except StoreUnavailable as error:
            self._logger.warning("Should this run be started again within 24 h, it is skipped again: %s", error)


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
