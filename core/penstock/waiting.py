"""Waiting for a claim: what a step means for the one who waits, how long to pause, when to give up."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.decision import Decision, Granted, Reason, Refused, Waiting
from penstock.errors import Blocked, ImpossibleClaim, LeaseLost, MissingRight, Skipped, StoreUnavailable, WaitTimeout
from penstock.report import describe
from penstock.rules import pool_key

if TYPE_CHECKING:
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request
    from penstock.settings import OnBlocked

log = logging.getLogger("penstock.waiting")
CANCELLED_LOOK_SECONDS = 0.1
QUEUED_LOOK_SECONDS = 30.0
"""A waiter that the store knows is woken; it looks by itself so seldom only in case of what nobody thought of."""


class Cancelled(Exception):
    """The caller's `cancelled` event was set during a wait; the claim has been withdrawn."""


class Wait:
    """One wait: announced once for each request, bounded by its time-out, patient while the store is away."""

    def __init__(
        self, engine: Engine, request: Request, on_blocked: OnBlocked, wait_timeout_seconds: float | None
    ) -> None:
        self._engine, self._request = engine, request
        self._on_blocked, self._timeout_seconds = on_blocked, wait_timeout_seconds
        self._pause_seconds = engine.settings.poll_min_seconds
        self._away_since = 0.0
        waited, after = time.monotonic() - request.started_at, request.tell_after_seconds
        self._tell_at = [seconds for seconds in after if seconds > waited or not request.announced]

    @property
    def away(self) -> bool:
        """Whether the store did not answer the last look."""
        return self._away_since > 0.0

    def look(self) -> Lease | float:
        """Step once: the lease, or for how many seconds to pause unless woken.

        Raises Blocked, Skipped, ImpossibleClaim, LeaseLost, WaitTimeout; StoreUnavailable when it lasts too long.
        """
        try:
            decision = self._ask()
            if self._away_since:
                self._away_since, self._pause_seconds = 0.0, self._engine.settings.poll_min_seconds
            if isinstance(decision, Granted):
                if self._request.announced and self._request.tell is None:
                    log.info("%s: slots granted after %.1f s", self._request.claim, decision.lease.waited_seconds)
                return decision.lease
            if isinstance(decision, Refused):
                self._refuse(decision)
            return self._bounded(self._next_pause())
        except StoreUnavailable as error:  # of the answer, or of the reasons for it
            return self._while_away(error)
        except LeaseLost:  # its run ended while the reasons were looked for; after a step there is no place to leave
            self._request.leave_queue()
            raise

    @contextlib.contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """Have `wake` called when the waiter should look again."""
        claim_id = self._request.claim_id
        if not self._request.queued:
            yield
            return
        self._engine.wakeups.add(claim_id, wake, asked_at=self._request.asked_at, ticket=self._request.ticket)
        try:
            yield
        finally:
            self._engine.wakeups.remove(claim_id, wake)

    def pause(self, woken: threading.Event, seconds: float, cancelled: threading.Event | None) -> None:
        """Until woken or over. Raises Cancelled."""
        until = time.monotonic() + seconds
        while True:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled(str(self._request.claim))
            left = until - time.monotonic()
            if left <= 0 or woken.wait(left if cancelled is None else min(left, CANCELLED_LOOK_SECONDS)):
                return

    def _ask(self) -> Decision:
        if self._on_blocked == "wait":
            return self._request.step()
        return self._request.try_step(skip=self._on_blocked == "skip")

    def _refuse(self, refused: Refused) -> None:
        why = "its run was skipped, and stays so" if refused.skipped else self._why(refused.reasons)
        text = f"{self._request.claim}: {why}"
        if refused.impossible:
            raise ImpossibleClaim(f"{text}. Ask for less, or raise the limit", refused.reasons)
        raise (Skipped if self._on_blocked == "skip" or refused.skipped else Blocked)(text, refused.reasons)

    def _why(self, reasons: Sequence[Reason]) -> str:
        if pools := self._request.held_back_by:
            return f"its run does not begin while all the pools are full that it begins with: {', '.join(pools)}"
        return "another process has the same claim" if self._request.elsewhere else describe(reasons)

    def announce(self) -> None:
        """Say who waits and for what, unless that has been said. A look that fails to tell why is no error."""
        if not self._request.announced:
            with contextlib.suppress(StoreUnavailable):
                self._announce()

    def _announce(self, *, again: bool = False) -> Sequence[Reason]:
        """Say once, or `again`, who waits for what. Not at once: most waits are short, to find out why costs more."""
        request, engine = self._request, self._engine
        reasons = tuple(reason for claim_id in request.places for reason in engine.reasons(claim_id))
        if request.held_back_by:
            reasons = engine.store.reasons_against({pool_key(name): 1 for name in request.held_back_by})
        first = not request.announced
        if request.tell is not None and (again or first):
            request.tell(reasons)
        if first:
            request.announced = True
            if request.tell is None:
                log.info("%s waits: %s", request.claim, self._why(reasons))
            for claim_id in request.places:
                if links := engine.circle(request.claim, claim_id):
                    log.warning("these wait for each other, none goes on by itself: %s", "; ".join(map(str, links)))
            engine.hook.penstock_waiting(claim=request.claim, waiting=Waiting(request.claim_id, reasons))
        return reasons

    def _while_away(self, error: StoreUnavailable) -> Lease | float:
        settings, claim = self._engine.settings, self._request.claim
        if isinstance(error, MissingRight):  # nothing that passes by itself; nor may it mean "unlimited"
            raise error
        if settings.on_store_error == "run":
            log.error("%s: the store is away, running WITHOUT LIMITS (on_store_error=run): %s", claim, error)
            return self._request.go_without_limits()
        now = time.monotonic()
        if not self._away_since:
            self._away_since, self._pause_seconds = now, 0.1
        if settings.on_store_error == "fail" or now - self._away_since >= settings.store_retry_seconds:
            raise error
        log.warning("the store is away, nothing is admitted meanwhile; trying again: %s", error)
        self._pause_seconds = min(self._pause_seconds * 2, 3.0)  # all go on within 5 s
        return self._bounded(self._pause_seconds, announce=False)

    def _next_pause(self) -> float:
        if self._request.queued:
            # A ticket's looks are the dearer ones, and there may be many in one process.
            return self._engine.settings.ticket_seconds if self._request.ticket else QUEUED_LOOK_SECONDS
        pause = self._pause_seconds
        self._pause_seconds = min(pause * 1.5, self._engine.settings.poll_max_seconds)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret

    def _bounded(self, pause: float, *, announce: bool = True) -> float:
        """The pause, cut at the time to announce it and at the time-out; at that, withdraw and raise WaitTimeout."""
        waited = time.monotonic() - self._request.started_at
        if announce and self._tell_at:
            if waited >= self._tell_at[0]:
                self._tell_at = [seconds for seconds in self._tell_at if seconds > waited]
                self._announce(again=True)
            if self._tell_at:
                pause = min(pause, max(0.0, self._tell_at[0] - waited))
        if self._timeout_seconds is None:
            return pause
        left = self._timeout_seconds - waited
        if left <= 0:
            reasons = self._announce() if announce else ()
            try:
                self._request.withdraw()
            except StoreUnavailable as error:
                log.warning("%s gives up, which the store hears of later: %s", self._request.claim, error)
            self._engine.refused(self._request.claim, reasons, "timed_out", waited)
            raise WaitTimeout(
                f"{self._request.claim}: no slot within {self._timeout_seconds:g} s ({self._why(reasons)}); "
                "wait longer, or raise the limit"
            )
        return min(pause, left)
