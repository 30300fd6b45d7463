"""A claim under way: from asking to the lease, the time-out or the withdrawal. The same steps for sync and async."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Literal

from penstock.decision import Granted, Refused, Waiting
from penstock.errors import Blocked, ImpossibleClaim, LeaseLost, Skipped, StoreUnavailable, WaitTimeout
from penstock.lease import Lease
from penstock.report import describe, impossible_reasons
from penstock.store.contract import Outcome, Owner, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.claim import Claim
    from penstock.decision import Decision, Reason
    from penstock.engine import Engine
    from penstock.rules import Demand

log = logging.getLogger("penstock.request")


class Cancelled(Exception):
    """The caller's `cancelled` event was set during a wait; the claim has been withdrawn."""


class Request:
    """One claim of this process on its way. `claim_id` names it in the store once it waits there."""

    def __init__(
        self, engine: Engine, claim: Claim, *, ticket: bool, probed: bool, eligible_after_seconds: float
    ) -> None:
        self.claim, self.claim_id = claim, claim.claim_id
        self._engine, self._ticket, self._probed = engine, ticket, probed
        self._eligible_after_seconds = eligible_after_seconds
        self._queued = False
        self._started_at = time.monotonic()
        self._announced = False
        self._abandoned = False
        self._step_lock = threading.Lock()

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> Decision:
        """Ask, or speak up again, once; never blocks longer than the store's own bound on locks."""
        return self._step(wait=True)

    def try_step(self) -> Granted | Refused:
        """Ask now or not at all; nothing is left behind when there is no room."""
        decision = self._step(wait=False)
        if isinstance(decision, Waiting):  # the same holder has it elsewhere: no room for a second one
            return Refused(decision.reasons)
        return decision

    def _step(self, *, wait: bool) -> Decision:
        engine = self._engine
        if (mine := engine.held(self.claim)) is not None:
            return Granted(mine)
        while True:
            version, concurrency = engine.configuration()
            demands = engine.demands(self.claim, concurrency)
            owner = self._owner()
            engine.requested(self.claim_id)
            if not self._queued:
                if any(demand.impossible for demand in demands):
                    engine.forget(self.claim_id)
                    return Refused(impossible_reasons(demands), impossible=True)
                outcome = engine.store.acquire(
                    self.claim,
                    demands,
                    version=version,
                    owner=owner,
                    wait=wait,
                    eligible_after_seconds=self._eligible_after_seconds,
                )
            else:
                outcome = engine.store.touch(self.claim_id, demands, version=version, owner=owner)
            if (decision := self._decide(outcome, owner, demands)) is not None:
                return decision

    def _owner(self) -> Owner:
        settings = self._engine.settings
        return Owner(
            session_id=None if self._ticket else self._engine.session_id(),
            ticket_seconds=settings.ticket_seconds,
            probe_seconds=settings.run_probe_seconds if self._probed else None,
        )

    def _decide(self, outcome: Outcome, owner: Owner, demands: Sequence[Demand]) -> Decision | None:
        """The decision, or None to look again."""
        engine = self._engine
        if outcome.claim_id != self.claim_id:
            engine.forget(self.claim_id)
            self.claim_id = outcome.claim_id
            engine.requested(self.claim_id)
        match outcome.result:
            case Result.HELD:
                waited = time.monotonic() - self._started_at
                session_id = None if self._probed else owner.session_id
                return Granted(
                    engine.granted(Lease(engine, self.claim, self.claim_id, outcome.slots, session_id, waited))
                )
            case Result.WAITING:
                self._queued = True
                return Waiting(self.claim_id)
            case Result.BUSY:
                return Waiting(self.claim_id)
            case Result.NO_ROOM:
                engine.forget(self.claim_id)
                return Refused(engine.store_reasons(demands))
            case Result.STALE:
                engine.configuration(fresh=True)
            case Result.SESSION_LOST:
                if owner.session_id is not None:
                    engine.session_is_gone(owner.session_id)
                self._queued = False
            case Result.ENDED:
                engine.forget(self.claim_id)
                raise LeaseLost(f"{self.claim.label}: the claim was ended by somebody else or expired; claim again")
        return None

    # -- waiting -----------------------------------------------------------------------------------------------------

    def acquire(
        self,
        on_blocked: Literal["wait", "skip", "fail"] = "wait",
        wait_timeout_seconds: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Lease:
        """The lease, after waiting for it as `on_blocked` says. Raises as Engine.acquire; Cancelled when told so."""
        pauses = _Pauses(self._engine.settings.poll_min_seconds, self._engine.settings.poll_max_seconds)
        outage = _Outage(self._engine.settings.store_retry_seconds)
        stop = cancelled or threading.Event()
        try:
            while True:
                try:
                    decision = self.step() if on_blocked == "wait" else self.try_step()
                    outage.over()
                except StoreUnavailable as error:
                    pause = outage.pause(error)
                else:
                    if (lease := self._conclude(decision, on_blocked)) is not None:
                        return lease
                    pause = pauses.next()
                if stop.wait(self._bounded(pause, wait_timeout_seconds)):
                    raise Cancelled(self.claim.label)
        except BaseException as error:  # also what a signal handler raises into the wait
            if isinstance(error, Cancelled) or not isinstance(error, Exception):
                self._undo()
            raise

    async def acquire_async(
        self, on_blocked: Literal["wait", "skip", "fail"] = "wait", wait_timeout_seconds: float | None = None
    ) -> Lease:
        """As `acquire`, on an event loop. A cancellation leaves nothing behind, even in the middle of a step."""
        pauses = _Pauses(self._engine.settings.poll_min_seconds, self._engine.settings.poll_max_seconds)
        outage = _Outage(self._engine.settings.store_retry_seconds)
        try:
            while True:
                try:
                    decision = await asyncio.to_thread(self._step_unless_abandoned, on_blocked == "wait")
                    outage.over()
                except StoreUnavailable as error:
                    pause = outage.pause(error)
                else:
                    if (lease := self._conclude(decision, on_blocked)) is not None:
                        return lease
                    pause = pauses.next()
                await asyncio.sleep(self._bounded(pause, wait_timeout_seconds))
        except asyncio.CancelledError:
            self._abandon()
            raise

    def withdraw(self) -> None:
        """Leave the queue, or give back what was granted meanwhile."""
        session_id = None if self._ticket else self._engine.session_id()
        self._engine.store.release(self.claim_id, session_id)
        self._engine.forget(self.claim_id)
        self._queued = False

    def hand_over(self, *, ticket_seconds: float, eligible_after_seconds: float = 0.0) -> str:
        """Leave the waiter as a ticket that keeps its place; whoever steps the claim next adopts it.

        Not granted before `eligible_after_seconds` have passed. Raises LeaseLost if the claim is not ours any more.
        """
        handed = self._engine.store.hand_over(
            self.claim_id,
            self._engine.session_id(),
            ticket_seconds=ticket_seconds,
            eligible_after_seconds=eligible_after_seconds,
        )
        self._engine.forget(self.claim_id)
        if not handed:
            raise LeaseLost(f"{self.claim.label}: the claim was lost before it could be handed over; claim again")
        return self.claim_id

    def _conclude(self, decision: Decision, on_blocked: Literal["wait", "skip", "fail"]) -> Lease | None:
        if isinstance(decision, Granted):
            if self._announced:
                log.info("%s: slots granted after %.1f s", self.claim.label, decision.lease.waited_seconds)
            return decision.lease
        if isinstance(decision, Refused):
            text = f"{self.claim.label}: {describe(decision.reasons)}"
            if decision.impossible:
                raise ImpossibleClaim(f"{text}. Ask for less, or raise the limit", decision.reasons)
            raise (Skipped if on_blocked == "skip" else Blocked)(text, decision.reasons)
        if not self._announced:
            self._announced = True
            reasons = self._engine.reasons(self.claim_id)
            log.info("%s waits: %s", self.claim.label, describe(reasons))
            self._engine.hook.penstock_waiting(claim=self.claim, waiting=Waiting(self.claim_id, reasons))
        return None

    def _bounded(self, pause: float, wait_timeout_seconds: float | None) -> float:
        """The pause, cut at the time-out; when that has passed, withdraw and raise WaitTimeout."""
        if wait_timeout_seconds is None:
            return pause
        left = self._started_at + wait_timeout_seconds - time.monotonic()
        if left <= 0:
            reasons: Sequence[Reason] = self._engine.reasons(self.claim_id)
            self.withdraw()
            raise WaitTimeout(
                f"{self.claim.label}: no slot within {wait_timeout_seconds:g} s ({describe(reasons)}); "
                "wait longer, or raise the limit"
            )
        return min(pause, left)

    def _step_unless_abandoned(self, wait: bool) -> Decision:
        with self._step_lock:
            if self._abandoned:
                raise Cancelled(self.claim.label)
            return self.step() if wait else self.try_step()

    def _abandon(self) -> None:
        """Undo a cancelled wait, after the step that may still be running in its thread."""

        def undo() -> None:
            with self._step_lock:
                self._abandoned = True
                self._undo()

        threading.Thread(target=undo, name="penstock-withdraw").start()

    def _undo(self) -> None:
        if (lease := self._engine.lease(self.claim_id)) is not None:
            lease.release()
        else:
            self.withdraw()


class _Pauses:
    """Jittered pauses that grow from the shortest to the longest."""

    def __init__(self, shortest: float, longest: float) -> None:
        self._pause, self._longest = shortest, longest

    def next(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 1.5, self._longest)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret


class _Outage:
    """How long the store has been away; raises its error again when that is too long."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience, self._since, self._pause = patience_seconds, 0.0, 0.1

    def over(self) -> None:
        self._since, self._pause = 0.0, 0.1

    def pause(self, error: StoreUnavailable) -> float:
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since >= self._patience:
            raise error
        log.warning("the store is away, nothing is admitted meanwhile; trying again: %s", error)
        self._pause = min(self._pause * 2, 5.0)
        return self._pause
