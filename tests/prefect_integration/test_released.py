"""A run that gives its slots back for the length of a block. No server here; test_liveness.py has real pauses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from itertools import pairwise

import pytest
from penstock.engine import Engine
from penstock.errors import ClaimError, StoreUnavailable
from penstock_prefect import adoption, areleased, installation, released, slots
from penstock_prefect.absence import Absence
from penstock_prefect.attempts import Attempt, standing_here
from penstock_prefect.claims import NOWHERE, Standing
from prefect_runs import held

TAKEN = {"pool:single": 1, "runs": 1}


@pytest.fixture
def engine(local_engine: Engine) -> Engine:
    return local_engine


@pytest.fixture
def absence(engine: Engine) -> Iterator[Absence]:
    """The code of the test stands in a flow whose run holds the slot of `single`, at priority 3."""
    own, absence = installation.engine(), Absence()
    assert own is not None
    lease = own.acquire(own.run_claim("r", "single", priority=3))
    run = Standing(
        run_id="r", run_claim_id=lease.claim_id, priority=3, run_pools={"single": 1}, lease=lease, absence=absence
    )
    with Attempt(run, "flow").applied():
        yield absence
    for one in (lease, *absence.taken):
        one.release()
    assert held(engine) == {}


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_slots_are_free_inside_and_taken_again_before_the_code_goes_on(engine: Engine, absence: Absence) -> None:
    before = standing_here()
    with released():
        assert held(engine) == {}
        assert standing_here().run_id is None
        with released(), slots("database"):  # they are free already; a claim made here is outside of the run
            assert held(engine) == {"pool:database": 1}
        rival = engine.acquire(engine.claim("single"))
        threading.Timer(0.5, rival.release).start()
        low = engine.request(engine.claim("single", priority=2))
        low.step()
    assert held(engine) == TAKEN, "by its priority it comes before the other"
    after = standing_here()
    assert (after.run_id, after.run_pools, after.absence) == ("r", before.run_pools, absence)
    assert after.run_claim_id != before.run_claim_id
    low.withdraw()
    with slots("single") as lease:  # the run's own covers it again
        assert lease is after.lease


def test_on_an_event_loop(engine: Engine, absence: Absence) -> None:
    async def pause() -> dict[str, int]:
        async with areleased():
            inside = held(engine)
        assert standing_here().run_id == "r"
        return inside

    assert asyncio.run(pause()) == {}
    assert held(engine) == TAKEN
    assert absence.is_over


def test_an_event_loop_goes_on_while_an_attempt_before_holds_the_slots(
    local_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow knows nothing of Penstock, so this is the first to look for what its worker holds."""
    until_then = time.monotonic() + 2.0
    found = ContextVar("found", default=False)
    seen: list[bool] = []

    def looks(*_: object) -> Standing | None:
        seen.append(found.get())
        return NOWHERE if time.monotonic() > until_then else None

    monkeypatch.setattr(adoption, "_once", looks)
    monkeypatch.setattr(adoption, "PAUSE_SECONDS", 0.5)

    async def pause() -> float:
        ticks = [time.monotonic()]

        async def tick() -> None:
            while True:
                await asyncio.sleep(0.02)
                ticks.append(time.monotonic())

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        found.set(True)
        async with areleased():
            ticking.cancel()
        return max(later - earlier for earlier, later in pairwise([*ticks, time.monotonic()]))

    assert asyncio.run(pause()) < 0.4
    assert len(seen) > 2
    assert all(seen), "it is looked for from where the flow stands"


def test_an_error_inside_passes_when_the_run_has_its_slots_again(engine: Engine, absence: Absence) -> None:
    with pytest.raises(ValueError, match="never resumed"), released():
        raise ValueError("never resumed")
    assert held(engine) == TAKEN


def test_a_flow_that_is_torn_down_inside_takes_nothing(engine: Engine, absence: Absence) -> None:
    with pytest.raises(asyncio.CancelledError), released():
        raise asyncio.CancelledError
    assert held(engine) == {}
    assert absence.is_over


@pytest.mark.parametrize("began", ["before", "meanwhile"])
def test_a_task_that_waits_meanwhile_stays_in_its_run(engine: Engine, absence: Absence, began: str) -> None:
    seen: list[dict[str, int]] = []

    def wait() -> None:
        with slots("database:2"):
            seen.append(held(engine))

    waiter = threading.Thread(target=copy_context().run, args=(wait,))
    rival = engine.acquire(engine.claim("database"))
    if began == "before":
        waiter.start()
        until(lambda: engine.status()["waiters"])
    with released():
        if began == "meanwhile":
            waiter.start()
        rival.release()
        waiter.join(1.5)
        assert waiter.is_alive()
    waiter.join(30)
    assert seen == [{**TAKEN, "pool:database": 2}]


def test_it_stands_in_the_flow_itself_and_does_nothing_outside_of_runs(engine: Engine, absence: Absence) -> None:
    with slots("database"), pytest.raises(ClaimError, match="put it into the flow itself"), released():
        pass
    with Attempt(Standing(), "block").applied(), released():
        assert held(engine) == TAKEN


def test_a_store_that_is_away_makes_no_pause_fail(
    engine: Engine, absence: Absence, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = installation.engine()
    assert own is not None

    def away() -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(own, "snapshot", away)
    with released():
        assert held(engine) == TAKEN
    assert held(engine) == TAKEN
