"""T9: clients' clocks an hour ahead, an hour behind, and jumping. Bar: no effect.

`time.time` and `time.time_ns` are replaced in each process. The time of a store on a server is the server's. SQLite's
is the machine's, which is one for all its processes: so there it jumps for all of them at once.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from typing import Any

import penstock
import pytest
from configuring import configure
from intervals import most_at_once
from penstock.engine import Engine
from penstock.settings import Settings
from situations import until

from faults.children import Children, Tell
from faults.record import LONG, Record

TTL_SECONDS, HOUR = 6.0, 3600.0
SECONDS = 60.0 if LONG else 8.0
CAPACITY, EACH = 2, 2
REAL_TIME, REAL_NS = time.time, time.time_ns


def set_clock(offset: Callable[[], float]) -> None:
    """In this process the time of day is off by so many seconds."""
    time.time = lambda: REAL_TIME() + offset()
    time.time_ns = lambda: REAL_NS() + int(offset() * 1e9)


@pytest.fixture
def own_clock() -> Any:
    """This process's clock is right again afterwards."""
    yield
    time.time, time.time_ns = REAL_TIME, REAL_NS


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.usefixtures("own_clock")
def test_clocks_that_are_wrong_change_nothing(
    store_kind: str, store_url: str, record: Record, children: Children
) -> None:
    shared, rng = multiprocessing.Value("d", 0.0), random.Random(9)
    clocks: dict[str, Callable[[], float]] = {
        "ahead": lambda: HOUR,
        "behind": lambda: -HOUR,
        "jumping": lambda: rng.choice((-HOUR, 0.0, HOUR)),
    }
    if store_kind == "sqlite":
        clocks = dict.fromkeys(("one", "two", "three"), lambda: shared.value)
        set_clock(lambda: shared.value)
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": CAPACITY, "kept": len(clocks)}})
        for offset in clocks.values():
            children.bear(lambda tell, offset=offset: _keep(store_url, offset, tell))
            for _ in range(EACH):
                children.bear(lambda tell, offset=offset: _work(store_url, offset, tell))
        for child in children.all:
            child.wait_for("looks")
        jumps, over = 0, time.monotonic() + SECONDS
        while time.monotonic() < over:
            time.sleep(1.3)
            jumps += 1
            shared.value = (HOUR, 0.0, -HOUR, 0.0)[jumps % 4]
        for child in children.all:
            child.join()
        until(lambda: not engine.snapshot().claims)
    said = [event for child in children.all for event in child.events]
    lost = sum(event.get("lost", False) for event in said)
    waits = [event["waited"] - event["took"] for event in said if event["event"] == "begin"]
    most, leases = most_at_once(children.intervals()), len(waits)
    how = f"all clocks set by an hour {jumps} times" if store_kind == "sqlite" else "an hour ahead, behind, jumping"
    done = f"{how}; {leases} leases in {SECONDS:g} s, three kept throughout"
    record(done=done, what="leases lost", figure=lost, bar=0)
    record(done=done, what="over the limit", figure=max(0, most - CAPACITY), bar=0)
    assert lost == 0
    assert most <= CAPACITY
    assert leases > 20
    assert max(map(abs, waits)) < 30, "what it says to have waited is not what it waited"


def _keep(url: str, offset: Callable[[], float], tell: Tell) -> None:
    set_clock(offset)
    with (
        penstock.connect(url, settings=Settings(session_ttl_seconds=TTL_SECONDS)) as engine,
        engine.hold("kept") as one,
    ):
        _look(engine, tell)
        time.sleep(SECONDS)
        tell("kept", lost=one.lost)


def _work(url: str, offset: Callable[[], float], tell: Tell) -> None:
    set_clock(offset)
    with penstock.connect(url, settings=Settings(session_ttl_seconds=TTL_SECONDS)) as engine:
        engine.session_id()
        _look(engine, tell)
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            asked = time.monotonic()
            with engine.hold("a", wait_timeout_seconds=30) as lease:
                tell("begin", waited=lease.waited_seconds, took=time.monotonic() - asked)
                time.sleep(0.02)
                tell("end", lost=lease.lost)


def _look(engine: Engine, tell: Tell) -> None:
    """Wait for the first look at the clock of the store: who has never looked sees no jump, and reaps everybody."""
    until(lambda: engine.store._jumps._last is not None)
    tell("looks")
