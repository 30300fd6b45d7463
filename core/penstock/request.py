"""A claim under way, from asking to the lease: each step is one of `penstock.steps`, in between it waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from penstock.errors import LeaseLost, StoreUnavailable
from penstock.steps import Steps
from penstock.waiting import Cancelled, Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.settings import OnBlocked

log = logging.getLogger("penstock.waiting")


class Request(Steps):
    """A claim whose caller waits for it, in a thread or on an event loop, steps it, hands it over or withdraws it."""

    def __init__(
        self, engine: Engine, claim: Claim, *, ticket: bool, probed: bool, eligible_after_seconds: float
    ) -> None:
        super().__init__(engine, claim, ticket=ticket, probed=probed, eligible_after_seconds=eligible_after_seconds)
        self._abandoned = False
        self._step_lock = threading.Lock()

    def acquire(
        self,
        on_blocked: OnBlocked = "wait",
        wait_timeout_seconds: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Lease:
        """The lease, after waiting for it as `on_blocked` says. Raises as Engine.acquire; Cancelled when told so."""
        try:
            while (lease := self.acquire_within(math.inf, on_blocked, wait_timeout_seconds, cancelled)) is None:
                pass
            return lease
        except BaseException as error:  # also what a signal handler raises into the wait
            if isinstance(error, Cancelled) or not isinstance(error, Exception):
                self.undo()
            raise

    def acquire_within(
        self,
        seconds: float,
        on_blocked: OnBlocked = "wait",
        wait_timeout_seconds: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Lease | None:
        """As `acquire`, for about `seconds`: None when it still waits by then; go on, hand it over or withdraw it.

        While the store is away it is not known whether it waits: this goes on until the store answers.
        """
        wait = Wait(self._engine, self, on_blocked, wait_timeout_seconds)
        woken, until = threading.Event(), time.monotonic() + seconds
        try:
            while isinstance(found := wait.look(), float):
                left = until - time.monotonic()
                if left <= 0 and not wait.away:
                    wait.announce()
                    return None
                with wait.listening(woken.set):
                    wait.pause(woken, found if wait.away else min(found, left), cancelled)
                woken.clear()
            return found
        except BaseException:
            self._engine.leases.forget(self.claim_id, self)  # a lease of this process is known all the same
            raise

    async def acquire_async(self, on_blocked: OnBlocked = "wait", wait_timeout_seconds: float | None = None) -> Lease:
        """As `acquire`, on an event loop. A cancellation leaves nothing behind, even in the middle of a step."""
        try:
            while (lease := await self._acquire_within_async(math.inf, on_blocked, wait_timeout_seconds)) is None:
                pass
            return lease
        except asyncio.CancelledError:
            self._abandon(self.undo)
            raise

    async def acquire_ticket_async(self, seconds: float) -> Lease | None:
        """A ticket's lease, after waiting for about `seconds` at most; None when it still waits by then.

        However this ends, by a cancellation too, the ticket stays in the store: somebody else goes on with it.
        """
        try:
            return await self._acquire_within_async(seconds, "wait", None)
        except asyncio.CancelledError:
            self._abandon(self._let_go)
            raise

    async def _acquire_within_async(
        self, seconds: float, on_blocked: OnBlocked, wait_timeout_seconds: float | None
    ) -> Lease | None:
        wait = Wait(self._engine, self, on_blocked, wait_timeout_seconds)
        loop, woken, until = asyncio.get_running_loop(), asyncio.Event(), time.monotonic() + seconds

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(woken.set)

        def look() -> Lease | float:
            with self._step_lock:
                if self._abandoned:
                    raise Cancelled(str(self.claim))
                return wait.look()

        try:
            while isinstance(found := await self._engine.off_loop(look), float):
                left = until - time.monotonic()
                if left <= 0 and not wait.away:
                    await self._engine.off_loop(wait.announce)
                    return None
                with wait.listening(wake), contextlib.suppress(TimeoutError):
                    # Not wait_for: Python 3.11's forgets a cancellation that comes together with the wake-up.
                    async with asyncio.timeout(found if wait.away else min(found, left)):
                        await woken.wait()
                woken.clear()
            return found
        except Exception:
            self._engine.leases.forget(self.claim_id, self)
            raise

    def _abandon(self, leave: Callable[[], None]) -> None:
        """End a cancelled wait, after the step that may still be running in its thread. Does not wait for it."""

        def undo() -> None:
            with self._step_lock:
                self._abandoned = True
                try:
                    leave()
                except (StoreUnavailable, LeaseLost) as error:
                    log.warning("%s: given up, which the store hears of at the next beat: %s", self.claim, error)
                except Exception:  # nobody waits for the outcome of this
                    log.exception("%s: could not be given up", self.claim)

        self._engine.in_thread(undo)

    def _let_go(self) -> None:
        """Leave what the store has as it is: this process does not answer for it any more."""
        if self._lease is not None:
            self._lease.hand_over(seconds=self._engine.settings.ticket_seconds)
        self._engine.leases.forget(self.claim_id, self)
