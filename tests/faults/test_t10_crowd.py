"""T10: a thousand waiters on a limit of 10, each holding for 50 ms. Bars: drained within twice the ideal, no error."""

from __future__ import annotations

import asyncio
import time

import penstock
import pytest
from configuring import configure
from intervals import most_at_once
from penstock.settings import Settings
from situations import until, waiting

from faults.children import Children, Tell
from faults.record import Record

PROCESSES, WAITERS, CAPACITY, HOLD_SECONDS = 4, 1000, 10, 0.05
IDEAL_SECONDS = WAITERS / CAPACITY * HOLD_SECONDS


@pytest.mark.timeout(420)
def test_a_thousand_waiters_are_drained(store_url: str, record: Record, children: Children) -> None:
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": CAPACITY}})
        with engine.hold(f"a:{CAPACITY}"):
            crowd = [children.bear(lambda tell: _crowd(store_url, tell)) for _ in range(PROCESSES)]
            until(lambda: waiting(engine, "pool:a") == WAITERS, 180)
            opened_at = time.monotonic()
        for child in crowd:
            child.join(180)
    intervals = children.intervals()
    drained = max(end for _, end in intervals) - opened_at
    errors = [said["error"] for child in crowd for said in child.events if said["event"] == "error"]
    over = max(0, most_at_once(intervals) - CAPACITY)
    done = f"{WAITERS} waiters in {PROCESSES} processes, limit {CAPACITY}, {HOLD_SECONDS * 1000:g} ms each"
    record(done=done, what="drained, ideal 1", figure=drained / IDEAL_SECONDS, bar=2, unit="times")
    record(done=done, what="errors and leases over the limit", figure=len(errors) + over, bar=0)
    assert errors == []
    assert over == 0
    assert len(intervals) == WAITERS


def _crowd(url: str, tell: Tell) -> None:
    async def one(engine: penstock.engine.Engine, number: int) -> None:
        try:
            async with engine.hold_async("a"):
                tell("begin", thread=number)
                await asyncio.sleep(HOLD_SECONDS)
                tell("end", thread=number)
        except penstock.PenstockError as error:
            tell("error", error=str(error))

    async def everybody() -> None:
        with penstock.connect(url, settings=Settings(store_retry_seconds=120)) as engine:
            await asyncio.gather(*(one(engine, number) for number in range(WAITERS // PROCESSES)))

    asyncio.run(everybody())
