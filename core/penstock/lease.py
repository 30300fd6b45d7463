"""A granted claim in the hands of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.decision import HeldSlot, fences_of
from penstock.text import shown

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.engine import Engine

log = logging.getLogger("penstock.lease")


class LossCallbacks:
    """What is to be called, once, when a lease is lost; what is appended after the loss is called at once."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lock = threading.Lock()
        self._calls: list[Callable[[Lease], None]] | None = []  # None: they have been called

    @property
    def called(self) -> bool:
        """Whether the loss has been told of."""
        return self._calls is None

    def append(self, call: Callable[[Lease], None]) -> None:
        """Have `call` called with the lease: in the thread that finds the loss, or here if it has been found."""
        with self._lock:
            if self._calls is not None:
                self._calls.append(call)
                return
        self._do(call)

    def call(self) -> bool:
        """Call them all. False if that has been done."""
        with self._lock:
            calls, self._calls = self._calls, None
        for call in calls or ():
            self._do(call)
        return calls is not None

    def _do(self, call: Callable[[Lease], None]) -> None:
        try:
            call(self._lease)
        except Exception:
            log.exception("a callback on the loss of %s failed", self._lease)


class Lease:
    """Slots in hand until `release`. As a context manager it releases on exit.

    Attributes: `claim`, `claim_id`, `slots`, `fences` (limit key → {slot: epoch}), `waited_seconds`; `observed` are the
    limits that had no room, where this installation only observes. `unlimited`: there is nothing behind this lease,
    since enforcement is off or the store was away and `on_store_error` says run. `on_lost.append(call)` has
    `call(lease)` called when the lease is lost, or at once if it is.
    """

    def __init__(
        self,
        engine: Engine,
        claim: Claim,
        claim_id: str,
        slots: tuple[HeldSlot, ...],
        session_id: str | None,
        waited_seconds: float,
        observed: tuple[str, ...] = (),
    ) -> None:
        self.claim = claim
        self.claim_id = claim_id
        self.slots = slots
        self.session_id = session_id
        self.waited_seconds = waited_seconds
        self.observed = observed
        self.granted_at = time.monotonic()
        self.on_lost = LossCallbacks(self)
        self.holds = 1  # how many times this process holds it (same holder, same lease)
        self.unlimited = False
        self._engine = engine
        self._lost = threading.Event()

    @property
    def fences(self) -> dict[str, dict[int, int]]:
        """The fencing tokens: limit key → {slot: epoch}."""
        return fences_of(self.slots)

    @property
    def lost(self) -> bool:
        """True as soon as the lease can no longer be trusted; it never turns back."""
        if not self._lost.is_set() and self.session_id is not None and not self._engine.trusted(self.session_id):
            self._lost.set()
        return self._lost.is_set()

    def mark_lost(self) -> bool:
        """Note the loss and run the callbacks, once. False if that has been done."""
        self._lost.set()  # as whoever looks at `lost` may have found before
        return self.on_lost.call()

    def release(self) -> None:
        """Give the slots back. Raises StoreUnavailable when that could not be written; expiry frees them then."""
        self._engine.release(self)

    def hand_over(self, *, seconds: float) -> str:
        """Leave the lease as a ticket that another process adopts within `seconds`. Returns the claim id.

        Raises LeaseLost if it was not ours any more.
        """
        return self._engine.leases.hand_over(self, seconds=seconds)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return shown(f"<Lease {self.claim.label}: {', '.join(f'{held.limit}#{held.slot}' for held in self.slots)}>")
