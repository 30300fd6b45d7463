"""A run whose host knows its root ops does not begin while all the pools are full with which it would begin."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from penstock.claim import Claim, ClaimKind
from penstock.engine import Engine
from penstock.request import Request
from penstock.steps import HELD_BACK_SECONDS
from situations import CALM, Configure, NewEngine, granted, held, queued, refused, until, waiting, waits

POOLS = {"limits": {"a": 1, "b": 1}}


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """One calm engine that looks at the store each time."""
    return new_engine(settings=replace(CALM, poll_max_seconds=0.0))


RUNS = {"max_concurrent_runs": 9}


def run(engine: Engine, run_id: str, *roots: Sequence[str]) -> Request:
    return engine.request(replace(engine.run_claim(run_id), roots=roots))


def test_a_run_is_held_back_while_all_its_roots_pools_are_full(engine: Engine, configure: Configure) -> None:
    configure(pools=POOLS, runs={"max_concurrent_runs": 1})
    request = run(engine, "1", ["a"], ["a", "b"])
    with engine.hold("a"):
        assert waits(request)
        assert request.held_back_by == ("a",)
        assert (held(engine, "runs"), waiting(engine, "runs")) == (0, 0), "others may have the slot meanwhile"
        granted(run(engine, "2", ["b"]).step()).release()
    assert granted(request.step()).slots
    assert request.held_back_by == ()


def test_one_root_with_room_or_without_a_pool_lets_it_begin(engine: Engine, configure: Configure) -> None:
    configure(pools=POOLS, runs=RUNS)
    with engine.hold("a"):
        granted(run(engine, "1", ["a"], ["b"]).step())
        granted(run(engine, "2", ["a"], []).step())
        granted(run(engine, "3").step())


def test_who_waits_for_the_pool_counts_and_the_buffer_lets_more_begin(engine: Engine, configure: Configure) -> None:
    configure(pools=POOLS | {"op_granularity_run_buffer": 1}, runs=RUNS)
    with engine.hold("a"):
        granted(run(engine, "1", ["a"]).step())
        queued(engine, "a", run_id="1", op_id="root", in_run=True)
        assert waits(run(engine, "2", ["a"]))


def test_it_is_not_held_back_for_ever(engine: Engine, configure: Configure) -> None:
    configure(pools=POOLS, runs=RUNS)
    request = run(engine, "1", ["a"])
    with engine.hold("a"):
        assert waits(request)
        request.started_at -= HELD_BACK_SECONDS
        granted(request.step())


def test_a_run_that_no_limit_bounds_takes_nothing_from_others_and_begins(engine: Engine, configure: Configure) -> None:
    configure(pools=POOLS)
    with engine.hold("a"):
        granted(run(engine, "1", ["a"]).step())


def test_a_pool_of_run_granularity_holds_no_run_back(engine: Engine, configure: Configure) -> None:
    """The run itself takes that one, and waits for it in its queue."""
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    granted(engine.request(engine.run_claim("1", "a")).step())
    second = engine.request(replace(engine.run_claim("2", "a"), roots=(("a",),)))
    assert waits(second)
    assert (second.held_back_by, waiting(engine, "pool:a")) == ((), 1)


def test_a_run_that_has_begun_goes_on(engine: Engine, new_engine: NewEngine, configure: Configure) -> None:
    configure(pools=POOLS, runs=RUNS)
    granted(run(engine, "1", ["a"]).step())
    with engine.hold("a"):
        granted(run(engine, "1", ["a"]).step())
        other = new_engine(settings=replace(CALM, poll_max_seconds=0.0))
        granted(other.request(replace(other.run_claim("1"), roots=(("a",),))).step())


def test_a_claim_that_does_not_wait_is_decided_by_the_runs_limits_alone(engine: Engine, configure: Configure) -> None:
    """A skipped run is remembered by what barred it in the store; a gate that only holds back decides nothing."""
    configure(pools=POOLS, runs={"max_concurrent_runs": 1})
    with engine.hold("a"):
        granted(run(engine, "1", ["a"]).try_step(skip=True))
        refused(run(engine, "2", ["a"]).try_step(skip=True))


def test_the_wait_says_why_and_ends_when_there_is_room(
    engine: Engine, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock")
    configure(pools=POOLS, runs=RUNS)
    first = engine.acquire(engine.claim("a"))
    done = threading.Event()

    def wait() -> None:
        run(engine, "1", ["a"]).acquire().release()
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        until(lambda: "full that it begins with: a" in caplog.text)
        assert not done.is_set()
    finally:
        first.release()
        thread.join(30)
    assert done.is_set()


def test_the_roots_travel_with_the_claim() -> None:
    claim = Claim(kind=ClaimKind.RUN, host="h", deployment="d", run_id="1", roots=(("a", "b"), ()))
    assert Claim.from_dict(claim.as_dict()) == claim
    assert claim.as_dict()["roots"] == [["a", "b"], []]
