"""T2: kill -9 of waiters, and between grant and acknowledgement. Bar: with 0.1 kills a second and worker, 80 % of the
leases without kills.

A dead waiter that is granted keeps the slots for 2 to 2.5 s, until a sweep parks it. So each kill costs that: of all
slots about 2.25 times the kills a second are lost.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from statistics import median

import penstock
import pytest
from configuring import configure
from intervals import most_at_once
from penstock.errors import StoreUnavailable
from penstock.settings import Settings

from faults.children import Child, Children, Tell
from faults.record import LONG, Record

WORKERS, CAPACITY, HOLD_SECONDS, KILLS_EACH = 16, 8, 0.25, 0.1
TURNS, TURN_SECONDS = (5, 20.0) if LONG else (1, 8.0)
"""Turns with kills and without, one after the other."""


@pytest.mark.timeout(120 + 4 * TURNS * TURN_SECONDS)
def test_killed_waiters_cost_no_more_than_a_fifth(store_url: str, record: Record, children: Children) -> None:
    rng, killed, ratios = random.Random(2), list[str](), list[float]()
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": CAPACITY}})
        for _ in range(TURNS):
            calm = _leases(children, store_url, None, [])
            ratios.append(_leases(children, store_url, rng, killed) / calm)
        over = max(0, most_at_once(children.intervals()) - CAPACITY)
        with engine.hold(f"a:{CAPACITY}", wait_timeout_seconds=60):
            pass
    done = f"{WORKERS} workers on {CAPACITY} slots for {HOLD_SECONDS:g} s each, {len(killed)} killed"
    acknowledging = sum(state == "asked" for state in killed)
    record(done=f"{done}, {acknowledging} of them waiting", what="over the limit", figure=over, bar=0)
    record(done=done, what="leases, of those without kills", figure=100 * median(ratios), bar=80, unit="%", most=False)
    assert over == 0


def _leases(children: Children, url: str, rng: random.Random | None, killed: list[str]) -> float:
    """Leases a second in one turn. With `rng`, waiters are killed and replaced at random."""
    crew: list[Child] = []
    while len(crew) < WORKERS:
        crew.append(children.bear(lambda tell: _work(url, tell)))
    every = list(crew)
    for one in crew:
        one.wait_for("end")
    begun = time.monotonic()
    kill_at = begun
    while (now := time.monotonic()) < begun + TURN_SECONDS:
        if rng is not None and now >= kill_at:
            kill_at += rng.expovariate(WORKERS * KILLS_EACH)
            victim = rng.choice([one for one in crew if one.last == "asked"] or crew)
            killed.append(victim.last or "")
            victim.kill()
            crew.remove(victim)
            crew.append(children.bear(lambda tell: _work(url, tell)))
            every.append(crew[-1])
        time.sleep(0.01)
    for one in crew:
        one.send(signal.SIGTERM)
    for one in crew:
        one.join()
    ended = [said["at"] for one in every for said in one.events if said["event"] == "end"]
    return sum(begun < at < begun + TURN_SECONDS for at in ended) / TURN_SECONDS


def _work(url: str, tell: Tell) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with penstock.connect(url, settings=Settings(session_ttl_seconds=5.0)) as engine:
        while not over.is_set():
            tell("asked")
            try:
                with engine.hold("a", wait_timeout_seconds=30):
                    tell("begin")
                    time.sleep(HOLD_SECONDS)
                    tell("end")
            except StoreUnavailable as error:
                tell("away", error=str(error))
