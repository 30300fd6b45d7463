"""A plain process's claim that stands in the queue behind a host's, and tells when the slot was free again."""

from __future__ import annotations

import time

from intervals import Interval
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.lease import Lease

HOLD_SECONDS = 0.3


class Rival:
    """Stepped by its test, as are all others of the same engine: claim, wait, hold for a moment, release."""

    def __init__(self, engine: Engine, pool: str, *, hold_seconds: float = HOLD_SECONDS) -> None:
        self._request = engine.request(engine.claim(pool, op_id=f"rival of {pool}"))
        self._lease: Lease | None = None
        self._hold_seconds = hold_seconds
        self.began = self.ended = 0.0

    @property
    def claim_id(self) -> str:
        """By which the store knows it."""
        return self._request.claim_id

    @property
    def is_over(self) -> bool:
        """Whether it has had the slot and given it back."""
        return self.ended > 0

    @property
    def interval(self) -> Interval:
        """From when to when it had the slot, by the machine's monotonic clock."""
        return self.began, self.ended

    @property
    def has_it(self) -> bool:
        """Whether it has the slot now."""
        return self.began > 0 and not self.is_over

    def step(self) -> None:
        """Do what is due; never waits."""
        if self._lease is None:
            decision = self._request.step()
            if isinstance(decision, Granted):
                self._lease, self.began = decision.lease, time.monotonic()
        elif not self.is_over and time.monotonic() >= self.began + self._hold_seconds:
            self.release()

    def release(self) -> None:
        """Give the slot back."""
        assert self._lease is not None
        self.ended = time.monotonic()
        self._lease.release()
