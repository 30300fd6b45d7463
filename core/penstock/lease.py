"""A granted claim in the hands of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.decision import HeldSlot, fences_of

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.engine import Engine

log = logging.getLogger("penstock.lease")


class Lease:
    """Slots in hand until `release`. As a context manager it releases on exit.

    Attributes: `claim`, `claim_id`, `slots`, `fences` (limit key → {slot: epoch}), `waited_seconds`; `observed` are the
    limits that had no room, where this installation only observes. `unlimited`: there is nothing behind this lease,
    since enforcement is off or the store was away and `on_store_error` says run.
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
        self.on_lost: list[Callable[[Lease], None]] = []
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
        """Note the loss and run the callbacks, once. False if it was known already."""
        if self._lost.is_set() and not self.on_lost:
            return False
        self._lost.set()
        callbacks, self.on_lost = self.on_lost, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("a callback on the loss of %s failed", self)
        return True

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
        return f"<Lease {self.claim.label}: {', '.join(f'{held.limit}#{held.slot}' for held in self.slots)}>"
