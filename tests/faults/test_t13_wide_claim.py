"""T13: a claim of all slots against a stream of claims of one. Bars: it waits no longer than it is aged and a reserved
minute begins and the longest holder goes; the slots are used to 90 %.

Time is the store's, shifted on by a second at each step: nobody sleeps.
"""

from __future__ import annotations

import random

import penstock
import pytest
from configuring import configure
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.request import Request
from penstock.store import asking
from situations import CALM, pass_time

from faults.record import LONG, Record

CAPACITY, QUEUE = 6, 2
NARROW_SECONDS, WIDE_SECONDS = (5, 30), 10
BOUND_SECONDS = asking.AGED / 1e6 + NARROW_SECONDS[1] + 2
WIDE = 10 if LONG else 1


class Stream:
    """Claims of one slot that never cease: `QUEUE` of them always wait."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._rng = engine, random.Random(13)
        self._waiting: list[Request] = []
        self._until: list[tuple[int, penstock.lease.Lease]] = []

    def step(self, now: int) -> int:
        """One second: who is through leaves, the others look, new ones come. How many slots they hold now."""
        for _, lease in [one for one in self._until if one[0] <= now]:
            lease.release()
        self._until = [one for one in self._until if one[0] > now]
        while len(self._waiting) < QUEUE:
            self._waiting.append(self._engine.request(self._engine.claim("a")))
        for request in list(self._waiting):
            if isinstance(decision := request.step(), Granted):
                self._waiting.remove(request)
                self._until.append((now + self._rng.randint(*NARROW_SECONDS), decision.lease))
        return len(self._until)


@pytest.mark.timeout(240 * WIDE)
def test_a_wide_claim_waits_a_bounded_time_and_little_idles(store_url: str, record: Record) -> None:
    waited, used, now = list[int](), 0, 0
    with penstock.connect(store_url, settings=CALM) as engine:
        configure(engine, pools={"limits": {"a": CAPACITY}})
        stream = Stream(engine)
        for _ in range(WIDE):
            for _ in range(30):
                used, now = used + stream.step(now), _second(engine, now)
            came, request = now, engine.request(engine.claim({"a": CAPACITY}))
            while not isinstance(decision := request.step(), Granted):
                assert now < came + 3 * BOUND_SECONDS, "it starves"
                used, now = used + stream.step(now), _second(engine, now)
            waited.append(now - came)
            for _ in range(WIDE_SECONDS):
                used, now = used + CAPACITY + stream.step(now), _second(engine, now)
            decision.lease.release()
    done = f"{WIDE} of {CAPACITY} slots among narrow ones that hold {NARROW_SECONDS[0]} to {NARROW_SECONDS[1]} s"
    record(done=done, what="waited", figure=max(waited), bar=BOUND_SECONDS, unit="s")
    used_share = 100 * used / (now * CAPACITY)
    record(done=f"{done}, {now} s in all", what="slots in use", figure=used_share, bar=90, unit="%", most=False)
    assert max(waited) <= BOUND_SECONDS
    assert used_share >= 90


def _second(engine: Engine, now: int) -> int:
    pass_time(engine.store, 1)
    return now + 1
