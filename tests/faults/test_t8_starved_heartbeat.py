"""T8: the event loop blocked, all threads busy, the interpreter's lock kept. Bar: no lease is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import penstock
import pytest
from configuring import configure
from penstock.decision import Refused
from penstock.settings import Settings

from faults.children import Children, Tell
from faults.record import LONG, Record

TTL_SECONDS = 30.0 if LONG else 6.0
STARVED_SECONDS = (3 if LONG else 1.5) * TTL_SECONDS
BUSY_THREADS = 8
CALL_SECONDS = TTL_SECONDS / 300
"""How long a call into C keeps the interpreter's lock, one call after the other; a beat takes it some ten times."""


def _block_the_loop(url: str, tell: Tell) -> None:
    async def main() -> None:
        with penstock.connect(url, settings=Settings(session_ttl_seconds=TTL_SECONDS)) as engine:
            async with engine.hold_async("loop") as lease:
                tell("holds")
                time.sleep(STARVED_SECONDS)  # that is the fault
                tell("starved", lost=lease.lost)

    asyncio.run(main())


def _busy(url: str, tell: Tell, pool: str, work: Callable[[], object], threads: int) -> None:
    with (
        penstock.connect(url, settings=Settings(session_ttl_seconds=TTL_SECONDS)) as engine,
        engine.hold(pool) as lease,
    ):
        tell("holds")
        until = time.monotonic() + STARVED_SECONDS

        def spin() -> None:
            while time.monotonic() < until:
                work()

        spinning = [threading.Thread(target=spin) for _ in range(threads)]
        for thread in spinning:
            thread.start()
        for thread in spinning:
            thread.join()
        tell("starved", lost=lease.lost)


def _in_python() -> None:
    for _ in range(10_000):
        pass


def _in_c() -> None:
    """`sum` over a range lets nobody else run until it is done."""
    begun = time.monotonic()
    sum(range(100_000))
    numbers = int(100_000 * CALL_SECONDS / max(1e-4, time.monotonic() - begun))
    sum(range(min(numbers, 10_000_000)))


@pytest.mark.timeout(120 + 2 * STARVED_SECONDS)
def test_a_starved_process_keeps_its_leases(store_url: str, record: Record, children: Children) -> None:
    works: dict[str, Callable[[Tell], object]] = {
        "loop": lambda tell: _block_the_loop(store_url, tell),
        "threads": lambda tell: _busy(store_url, tell, "threads", _in_python, BUSY_THREADS),
        "c": lambda tell: _busy(store_url, tell, "c", _in_c, 1),
    }
    with penstock.connect(store_url) as other:
        configure(other, pools={"default_limit": 1})
        starving = {pool: children.bear(work) for pool, work in works.items()}
        for child in starving.values():
            child.wait_for("holds")
        while any(child.last != "starved" for child in starving.values() if not child.ended()):
            for pool, child in starving.items():
                refused = isinstance(other.try_acquire(other.claim(pool)), Refused)
                assert refused or child.last == "starved", f"{pool} was given to somebody else"
            time.sleep(0.1)
        lost = [pool for pool, child in starving.items() if child.wait_for("starved")["lost"]]
        for child in starving.values():
            child.join()
    done = (
        f"TTL {TTL_SECONDS:g} s, for {STARVED_SECONDS:g} s: loop blocked; {BUSY_THREADS} threads busy; "
        f"the interpreter's lock kept for {CALL_SECONDS:g} s at a time"
    )
    record(done=done, what="leases lost", figure=len(lost), bar=0)
    assert lost == []
