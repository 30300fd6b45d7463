"""T2: kill -9 of waiters, and between grant and acknowledgement. Bar: with 0.1 kills a second and worker, 80 % of the
leases without kills.

A dead waiter that is granted keeps the slots until a sweep parks it. What became of all slot-seconds is told from the
history: at work, on the way (granted and not at work yet, or through and not released yet), the dead's, free.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import dataclass, field
from statistics import median

import penstock
import pytest
from configuring import configure
from intervals import most_at_once
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings
from penstock.store.contract import Event

from faults.children import Child, Children, Tell
from faults.record import LONG, Record

WORKERS, CAPACITY, HOLD_SECONDS, KILLS_EACH = 16, 8, 0.25, 0.1
TURNS, TURN_SECONDS = (5, 20.0) if LONG else (1, 8.0)
"""Turns with kills and without, one after the other."""
KILL_PAUSE_SECONDS = 1 / (WORKERS * KILLS_EACH)


@dataclass
class Turn:
    """What came of one. `slot_seconds`: what became of those of all slots, of which there are `CAPACITY` a second."""

    leases: int
    slot_seconds: dict[str, float]
    killed: list[str] = field(default_factory=list)


@pytest.mark.timeout(120 + 4 * TURNS * TURN_SECONDS)
def test_killed_waiters_cost_no_more_than_a_fifth(store_url: str, record: Record, children: Children) -> None:
    rng, calm, rough = random.Random(2), list[Turn](), list[Turn]()
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": CAPACITY}})
        for _ in range(TURNS):
            calm.append(_turn(engine, children, store_url, None))
            rough.append(_turn(engine, children, store_url, rng))
        over = max(0, most_at_once(children.intervals()) - CAPACITY)
        with engine.hold(f"a:{CAPACITY}", wait_timeout_seconds=60):
            pass
    killed = [state for turn in rough for state in turn.killed]
    waiting = sum(state == "asked" for state in killed)
    done = f"{WORKERS} workers on {CAPACITY} slots for {HOLD_SECONDS:g} s each, {len(killed)} killed"
    ratio = median(with_kills.leases / without.leases for with_kills, without in zip(rough, calm, strict=True))
    shares = f"slots: {_shares(rough)}; without kills {_shares(calm)}"
    record(done=f"{done}, {waiting} of them waiting", what="over the limit", figure=over, bar=0)
    what = "leases, of those without kills"
    record(done=f"{done}; {shares}", what=what, figure=100 * ratio, bar=80, unit="%", most=False)
    assert over == 0
    assert waiting > len(killed) / 2, "no waiters were killed"


def _turn(engine: Engine, children: Children, url: str, rng: random.Random | None) -> Turn:
    """With `rng`, waiters are killed at random and replaced at once."""
    crew: list[Child] = []
    while len(crew) < WORKERS:
        crew.append(children.bear(lambda tell: _work(url, tell)))
    every, killed = list(crew), list[str]()
    for one in crew:
        one.wait_for("end")
    begun = time.monotonic()
    over = begun + TURN_SECONDS
    kill_at = begun if rng is not None else over
    while (now := time.monotonic()) < over:
        if rng is not None and now >= kill_at:
            kill_at += KILL_PAUSE_SECONDS
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
    return Turn(sum(begun < at < over for at in ended), _slot_seconds(engine, every, begun, over), killed)


def _slot_seconds(engine: Engine, crew: list[Child], begun: float, over: float) -> dict[str, float]:
    """By the store's history, and by the workers' own words."""
    offset = time.time() - time.monotonic()

    def within(since: float, until: float) -> float:
        return max(0.0, min(until, over) - max(since, begun))

    granted, found = dict[str, float](), {"at work": 0.0, "on the way": 0.0, "the dead's": 0.0}
    for row in engine.store.history(since=int((begun + offset - 60) * 1e6)):
        at, claim_id = row.at / 1e6 - offset, row.claim_id or ""
        if row.event is Event.GRANTED:
            granted[claim_id] = at
        elif (since := granted.pop(claim_id, None)) is not None:
            found["on the way" if row.event is Event.RELEASED else "the dead's"] += within(since, at)
    found["the dead's"] += sum(within(since, over) for since in granted.values())
    for one in crew:
        at_work = [said for said in one.events if said["event"] in ("begin", "end")]
        for begin, end in zip(at_work[::2], at_work[1::2], strict=False):
            found["at work"] += within(begin["at"], end["at"])
    found["on the way"] -= found["at work"]
    return found | {"free": CAPACITY * TURN_SECONDS - sum(found.values())}


def _shares(turns: list[Turn]) -> str:
    whole = CAPACITY * TURN_SECONDS * len(turns)
    return ", ".join(
        f"{name} {100 * sum(turn.slot_seconds[name] for turn in turns) / whole:.0f} %" for name in turns[0].slot_seconds
    )


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
