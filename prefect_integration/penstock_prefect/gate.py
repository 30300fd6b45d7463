"""The gate around one attempt of a task or flow, and around a `slots` block: claim, wait, hold, give back."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import Skipped, StoreUnavailable
from penstock.hookspecs import hookimpl
from penstock.report import describe
from penstock.waiting import Cancelled
from prefect.states import Completed
from prefect.transactions import get_transaction

from penstock_prefect import claims, facts, settings
from penstock_prefect.claims import Limits, Standing

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.decision import Waiting
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request

CANCEL_POLL_SECONDS = 0.2
Kind = Literal["task", "flow", "block"]

_standing: ContextVar[Standing] = ContextVar("penstock_standing", default=claims.NOWHERE)
_asking: ContextVar[_Asking | None] = ContextVar("penstock_asking", default=None)
_block_numbers = itertools.count(1)


@dataclass(frozen=True)
class Attempt:
    """One attempt that passed the gate, or (`skipped`, the state to end in) one that was turned away there.

    `standing.lease` is the innermost lease held here; None when Penstock is inactive or nothing is limited.
    """

    standing: Standing
    skipped: Any = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While inside, claims made here know what is held around them."""
        token = _standing.set(self.standing)
        try:
            yield
        except Exception:
            raise
        except BaseException:
            # SIGTERM or a cancellation passes here before Prefect waits for the flow's threads: end their waits.
            if self.standing.ended is not None and self.standing.step_id is None:
                self.standing.ended.set()
            raise
        finally:
            _standing.reset(token)


@contextmanager
def attempt(limits: Limits) -> Iterator[Attempt]:
    """Hold what `limits` asks for the length of the block.

    Raises as Engine.acquire, and CancelledError when the flow around it is torn down during the wait. A task or flow
    that shall be skipped when blocked comes out marked so; anywhere else Skipped is raised.
    """
    asking = _ask(limits)
    passed = asking.acquire()
    with asking.kept(passed):
        yield passed


@asynccontextmanager
async def attempt_async(limits: Limits) -> AsyncIterator[Attempt]:
    """As `attempt`, without blocking the event loop during the wait."""
    # In a thread: connecting and asking for the deployment's name are I/O. The thread sees this task's context.
    asking = await asyncio.to_thread(_ask, limits)
    passed = await asking.acquire_async()
    with asking.kept(passed):
        yield passed


def _ask(limits: Limits) -> _Asking:
    """Find out what runs here and what it must claim."""
    around, logger = _standing.get(), facts.run_logger()
    if (engine := settings.engine(_announcer)) is None:
        return _Asking(None, limits, None, around, logger)
    claim: Claim | None
    ignored: tuple[str, ...] = ()
    flow, task = facts.running_flow(limits), facts.running_task(limits)
    if task is not None:
        claim, standing = claims.task_claim(task, limits, engine.deployment, around)
        ignored = claims.op_tags(task)[1]
    elif flow is None:
        block_id = f"{around.step_id or around.run_id or 'block'}#{next(_block_numbers)}"
        claim, standing = claims.block_claim(limits, engine.deployment, around, block_id)
    elif around.run_id is not None:
        claim, standing = claims.subflow_claim(flow, limits, engine.deployment, around)
    else:
        claim, standing = claims.run_claim(flow, limits, engine.deployment)
        ignored = claims.run_tags(flow)[1]
    if ignored:
        logger.warning("No limit sees the tags %s: a tag key has one value, and theirs is taken", ", ".join(ignored))
    return _Asking(engine, limits, claim, standing, logger, "task" if task else "flow" if flow else "block")


@dataclass
class _Asking:
    """A claim on its way through the gate. `claim` is None when nothing here is limited."""

    engine: Engine | None
    limits: Limits
    claim: Claim | None
    standing: Standing
    logger: logging.Logger | logging.LoggerAdapter[Any]
    kind: Kind = "block"
    waits: bool = False
    blocking: bool = False

    def acquire(self) -> Attempt:
        """Wait for the lease as the limits say, in this thread."""
        self.blocking = True
        if self.engine is None or self.claim is None:
            return Attempt(self.standing)
        request = self.engine.request(self.claim)
        token = _asking.set(self)
        try:
            lease = request.acquire(
                self.limits.on_blocked, self.limits.wait_timeout_seconds, cancelled=self.standing.ended
            )
        except Skipped as skipped:
            return self._skip(skipped)
        except Cancelled:
            raise self._torn_down() from None
        finally:
            _asking.reset(token)
        return self._passed(lease)

    async def acquire_async(self) -> Attempt:
        """As `acquire`, on the event loop."""
        if self.engine is None or self.claim is None:
            return Attempt(self.standing)
        request = self.engine.request(self.claim)
        token = _asking.set(self)
        try:
            lease = await self._await(request)
        except Skipped as skipped:
            return self._skip(skipped)
        finally:
            _asking.reset(token)
        return self._passed(lease)

    async def _await(self, request: Request) -> Lease:
        """Watches for the end of the flow besides: nobody cancels the event loop of a task in a thread of Prefect's."""
        waiting = asyncio.ensure_future(request.acquire_async(self.limits.on_blocked, self.limits.wait_timeout_seconds))
        ended = self.standing.ended
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=None if ended is None else CANCEL_POLL_SECONDS)
                if ended is not None and ended.is_set():
                    raise self._torn_down()
        except asyncio.CancelledError:
            waiting.cancel()
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._give_back(waiting.result())
            raise
        return waiting.result()

    @contextmanager
    def kept(self, passed: Attempt) -> Iterator[None]:
        """Give the lease back at the end, however the block ends; say so when it is lost before."""
        lease = passed.standing.lease
        if self.claim is None or lease is None or passed.skipped is not None:
            yield
            return
        lease.on_lost.append(self._say_lost)
        try:
            yield
        finally:
            self._give_back(lease)

    def announce(self, waiting: Waiting) -> None:
        """Say in the run's log what the wait is for."""
        self.waits = True
        self.logger.info("Waiting for slots: %s", describe(waiting.reasons))
        if self.blocking and _loop_runs_here():
            self.logger.warning(
                "This wait blocks the event loop: a holder on the same loop could never finish. "
                "Make the function async, or submit it to the task runner"
            )
        if self.kind != "block" and facts.timed_by_prefect(self.kind):
            self.logger.warning("This wait counts against timeout_seconds: put @limited above @task or @flow")

    def _passed(self, lease: Lease) -> Attempt:
        if self.standing.ended is not None and self.standing.ended.is_set():
            self._give_back(lease)
            raise self._torn_down()
        if self.waits:
            self.logger.info("Slots granted after waiting %.1f s", lease.waited_seconds)
        return Attempt(replace(self.standing, lease=lease))

    def _skip(self, skipped: Skipped) -> Attempt:
        if self.kind == "block":
            raise skipped
        reason = describe(skipped.reasons)
        self.logger.info("Skipped, not waiting for slots: %s", reason)
        if self.kind == "task" and (transaction := get_transaction()) is not None:
            # Otherwise the empty result would be cached, and later runs would take it for the real one.
            transaction.write_on_commit = False
        return Attempt(self.standing, Completed(name="Skipped", message=reason))

    def _give_back(self, lease: Lease) -> None:
        try:
            lease.release()
        except StoreUnavailable as error:
            # The work is done and its result is good: the run does not fail for this.
            self.logger.error("The slots could not be given back; they are freed when they expire: %s", error)

    def _say_lost(self, lease: Lease) -> None:
        self.logger.error("The slots are lost, others may get them while this runs on: %r", lease)

    def _torn_down(self) -> asyncio.CancelledError:
        # What Prefect itself raises in a task whose runner was cancelled: the task run ends as Crashed.
        return asyncio.CancelledError("The flow ended while this waited for slots")


class _Announcer:
    """Hears of each wait of this process, in the context of the one who waits."""

    @hookimpl
    def penstock_waiting(self, waiting: Waiting) -> None:
        if (asking := _asking.get()) is not None:
            asking.announce(waiting)


_announcer = _Announcer()


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
