"""What a spawned process does in a test: it must be importable by name there."""

from __future__ import annotations

import threading
import time
from typing import Any

import penstock
import pytest
from penstock.decision import Granted
from penstock.errors import WaitTimeout
from penstock.settings import Settings


def claim_in_rounds(url: str, rounds: int, barrier: Any) -> list[bool]:
    """Ask once for each round's pool, together with all others at the barrier, and keep what is granted to the end."""
    with penstock.connect(url) as engine:
        engine.session_id()
        outcomes = []
        try:
            for number in range(rounds):
                barrier.wait(60)
                outcomes.append(isinstance(engine.try_acquire(engine.claim(f"pool{number}")), Granted))
            barrier.wait(60)  # nobody lets go before everybody has asked
        except BaseException:
            barrier.abort()  # the others need not wait for this one
            raise
        return outcomes


def hold_for_ever(url: str, run_id: str, pool: str, holds: Any) -> None:
    """Hold a pool inside of a run, say so by the event, and stay until killed."""
    with penstock.connect(url) as engine, engine.hold(pool, run_id=run_id, op_id="op"):
        holds.set()
        threading.Event().wait()


def cpu_seconds_of_a_wait(url: str, pool: str, seconds: float) -> float:
    """The processor time that this process spends on waiting in vain for so long."""
    with penstock.connect(url) as engine:

        def wait(seconds: float) -> None:
            with pytest.raises(WaitTimeout):
                engine.acquire(engine.claim(pool), wait_timeout_seconds=seconds)

        wait(0.6)  # what is loaded and compiled at the first wait is not the price of waiting
        before = time.process_time()
        wait(seconds)
        return time.process_time() - before


def hold_until_told(url: str, pool: str, held: Any, told: Any) -> None:
    """Hold a slot, say so, and keep it until told otherwise."""
    with penstock.connect(url) as engine, engine.hold(pool):
        held.set()
        told.wait(60)


def wait_and_tell(url: str, pool: str, poll_seconds: float, granted: Any) -> None:
    """Wait for a slot, looking at most so often, and say that it came."""
    settings = Settings(poll_max_seconds=poll_seconds)
    with penstock.connect(url, settings=settings) as engine, engine.hold(pool, wait_timeout_seconds=60):
        granted.set()
