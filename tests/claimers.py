"""What a spawned process does in a test: it must be importable by name there."""

from __future__ import annotations

from typing import Any

import penstock
from penstock.decision import Granted


def claim_once(url: str, pool: str, barrier: Any) -> bool:
    """Ask once, together with all others at the barrier; whether it was granted."""
    with penstock.connect(url) as engine:
        engine.session_id()
        barrier.wait(60)
        decision = engine.try_acquire(engine.claim(pool))
        granted = isinstance(decision, Granted)
        barrier.wait(60)  # nobody lets go before everybody has asked
        return granted
