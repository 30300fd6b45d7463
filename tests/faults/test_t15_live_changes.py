"""T15: a limit shrunk, grown, deleted and made again under load.

Bars: never one too many (after a shrink the excess only drains); a change is felt within 1 s.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import penstock
import pytest
from configuring import configure
from penstock import changes
from penstock.config import PoolLimit
from penstock.engine import Engine
from situations import held, in_threads, until, waiting

from faults.children import Children, Tell
from faults.record import LONG, Record

CHANGES, CLOSINGS = (1000, 50) if LONG else (60, 4)
PROCESSES, THREADS = 4, 4
DEFAULT = 3
CAPACITIES = (None, 0, 1, 2, 5, 8)
"""None deletes the limit: the pool falls to the default."""


@dataclass(frozen=True)
class Change:
    """A capacity, in force from some moment between `begun` and `ended` on."""

    begun: float
    ended: float
    capacity: int


@dataclass(frozen=True)
class Sample:
    """What one read of the store, made between `begun` and `ended`, found held."""

    begun: float
    ended: float
    held: int


@contextmanager
def sampled(engine: Engine, samples: list[Sample]) -> Iterator[None]:
    """Meanwhile read again and again what is held."""
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.005):
            begun = time.monotonic()
            now_held = held(engine, "pool:a")
            samples.append(Sample(begun, time.monotonic(), now_held))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        over.set()
        sampler.join()


def violations(samples: list[Sample], made: list[Change]) -> list[str]:
    """Samples in which more is held than both the one before and every capacity in force since allow."""
    found = []
    for before, after in pairwise(samples):
        last = max((change for change in made if change.ended <= before.begun), key=lambda c: c.ended, default=made[0])
        since = [change.capacity for change in made if change.ended > before.begun and change.begun < after.ended]
        if after.held > max([before.held, last.capacity, *since]):
            found.append(f"{before.held} → {after.held} held under {last.capacity}, {since}")
    return found


@pytest.mark.timeout(300 + 2 * CHANGES)
def test_a_limit_changed_under_load_is_never_passed(store_url: str, record: Record, children: Children) -> None:
    rng, samples, made, felt = random.Random(15), list[Sample](), list[Change](), list[float]()
    with penstock.connect(store_url) as engine, penstock.connect(store_url) as reader:
        configure(engine, pools={"default_limit": DEFAULT, "limits": {"a": 2}})
        made.append(Change(0.0, time.monotonic(), 2))
        for _ in range(PROCESSES):
            children.bear(lambda tell: _load(store_url, tell))
        until(lambda: held(engine, "pool:a"))
        with sampled(reader, samples):
            for _ in range(CHANGES):
                _set(engine, rng.choice(CAPACITIES), made)
                time.sleep(rng.uniform(0, 0.1))
        for _ in range(CLOSINGS):
            _set(engine, 0, made)
            until(lambda: not held(engine, "pool:a") and waiting(engine, "pool:a") == PROCESSES * THREADS)
            _set(engine, 8, made)
            opened = made[-1].ended
            until(lambda opened=opened: _begun_since(children, opened) is not None)
            felt.append((_begun_since(children, opened) or 0.0) - opened)
        for child in children.all:
            child.kill()
    leases = len(children.intervals())
    wrong = violations(samples, made)
    done = f"{CHANGES} changes under {PROCESSES * THREADS} clients, {leases} leases, {len(samples)} looks at the store"
    record(done=done, what="looks at one too many", figure=len(wrong), bar=0)
    done = f"closed until all wait, then opened, {CLOSINGS} times"
    record(done=done, what="first waiter in after", figure=max(felt), bar=1, unit="s")
    assert wrong == []


def _begun_since(children: Children, at: float) -> float | None:
    begun = (said["at"] for child in children.all for said in child.events[-50:] if said["event"] == "begin")
    return min((float(one) for one in begun if one > at), default=None)


def _set(engine: Engine, capacity: int | None, made: list[Change]) -> None:
    begun = time.monotonic()
    changes.set_pool(engine, "a", None if capacity is None else PoolLimit(limit=capacity))
    made.append(Change(begun, time.monotonic(), DEFAULT if capacity is None else capacity))


def _load(url: str, tell: Tell) -> None:
    with penstock.connect(url) as engine:

        def client(number: int) -> None:
            while True:
                with engine.hold("a"):
                    tell("begin", thread=number)
                    time.sleep(0.02)
                    tell("end", thread=number)

        in_threads(THREADS, client)
