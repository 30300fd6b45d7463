"""What a process finds that was stopped, or cut off, for too long, and what it leaves behind when the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from penstock import LeaseLost
from penstock.decision import Granted, Waiting
from penstock.engine import Engine
from penstock.errors import StoreUnavailable, WaitTimeout
from penstock.settings import Settings
from penstock.store.contract import ClaimState
from situations import held, until

SECOND = 1_000_000


def reap(store: Any) -> None:
    """Let time pass until every session has expired; in steps, for a clock that jumps is not believed."""
    for _ in range(12):
        store.clock_shift += 5 * SECOND
        store.sweep()


def test_a_waiter_whose_session_expired_waits_on_as_a_new_claim(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    away, holder = new_engine(), new_engine()
    lease = holder.acquire(holder.claim("a"))
    request = away.request(away.claim("a"))
    assert isinstance(request.step(), Waiting)
    first = request.claim_id
    away._session._stop.set()  # stopped: no beat goes out
    store.end(lease.claim_id, reason="for the test")
    reap(store)
    assert first not in {row.claim.claim_id for row in store.snapshot().claims}
    decision = request.step()
    assert isinstance(decision, Granted)
    assert request.claim_id != first, "an id that has ended is never granted again"
    decision.lease.release()


def test_a_claim_that_expired_before_its_answer_came_costs_nobody_else_the_lease(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    engine = new_engine()
    request = engine.request(engine.claim("a"))
    acquire = store.acquire
    store.acquire = lambda *arguments, **named: acquire(*arguments, **named) and 1 / 0  # the answer is lost
    try:
        request.step()
    except ZeroDivisionError:
        store.acquire = acquire
    engine._session._stop.set()
    reap(store)
    engine.session_is_gone(engine.session_id())
    other = engine.acquire(engine.claim("b"))  # under a new session
    decision = request.step()
    assert isinstance(decision, Granted)
    assert not other.lost
    states = {row.claim.claim_id: row.state for row in store.snapshot().claims}
    assert states[other.claim_id] is states[decision.lease.claim_id] is ClaimState.HELD


def test_what_could_not_be_released_is_free_as_soon_as_the_store_answers_again(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at the next beat, which here is in an hour."""
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(settings=Settings(session_ttl_seconds=3 * 3600))
    lease = engine.acquire(engine.claim("a"))

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "release", away)
        with pytest.raises(StoreUnavailable):
            lease.release()
    until(lambda: not held(engine, "pool:a"))


def wait_on_a_loop(engine: Engine, request: Any, loses: Callable[[], None]) -> None:
    async def wait() -> None:
        waiting = asyncio.create_task(request.acquire_async())
        while not request.queued:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(loses)
        engine.wakeups.wake([request.claim_id])
        await waiting

    asyncio.run(wait())


def wait_step_by_step(_: Engine, request: Any, loses: Callable[[], None]) -> None:
    assert isinstance(request.step(), Waiting)
    loses()
    request.step()


@pytest.mark.parametrize("wait", [wait_on_a_loop, wait_step_by_step])
def test_a_waiter_whose_run_is_lost_leaves_the_queue_at_once(
    store: Any, engine: Engine, configure: Callable[..., None], wait: Callable[..., None]
) -> None:
    """It stood there until the next beat, could be granted, and was shown."""
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    run = engine.acquire(engine.run_claim("run"))
    request = engine.request(engine.claim("a", run_id="run", op_id="op", in_run=True))
    with pytest.raises(LeaseLost, match="claim the run again"):
        wait(engine, request, lambda: store.end(run.claim_id, reason="for the test"))
    assert engine.status()["waiters"] == []


def test_a_ticket_whose_run_is_lost_keeps_its_place_for_who_comes_back(
    store: Any, engine: Engine, configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    run = engine.acquire(engine.run_claim("run"))
    request = engine.request(engine.claim("a", run_id="run", op_id="op", in_run=True), ticket=True)
    with pytest.raises(LeaseLost):
        wait_step_by_step(engine, request, lambda: store.end(run.claim_id, reason="for the test"))
    assert [row["claim_id"] for row in engine.status()["waiters"]] == [request.claim_id]


def test_a_store_that_goes_away_before_it_has_said_why_one_waits_ends_no_wait(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred task failed whose trigger was about to tell who held the slot when the store was cut off."""
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a"))
    reasons, told = engine.reasons, list[object]()

    def away_at_first(claim_id: str) -> object:
        monkeypatch.setattr(engine, "reasons", reasons)
        lease.release()
        raise StoreUnavailable("cut off")

    monkeypatch.setattr(engine, "reasons", away_at_first)
    monkeypatch.setattr(engine, "settings", replace(engine.settings, store_retry_seconds=60.0))
    request = engine.request(engine.claim("a"))
    request.tell, request.tell_after_seconds = told.append, (0.0,)
    request.acquire(wait_timeout_seconds=60).release()


def test_a_run_that_ends_while_its_waiter_is_told_why_it_waits_is_lost(
    store: Any, engine: Engine, configure: Callable[..., None]
) -> None:
    """It had been said that the run was never claimed, an error for good; the host is to claim it again."""
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    run = engine.acquire(engine.run_claim("run"))
    request = engine.request(engine.claim("a", run_id="run", in_run=True))
    request.tell, request.tell_after_seconds = lambda _: store.end(run.claim_id, reason="by hand"), (0.0,)
    with pytest.raises(LeaseLost):
        request.acquire(wait_timeout_seconds=60)
    assert engine.status()["waiters"] == []


def test_a_wait_that_times_out_while_the_store_is_away_says_so(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("cut off")

    configure(pools={"limits": {"a": 1}})
    held = engine.acquire(engine.claim("a"))
    request = engine.request(engine.claim("a"))
    assert isinstance(request.step(), Waiting)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "settings", replace(engine.settings, store_retry_seconds=60.0))
        for name in ("acquire", "touch", "release"):
            patched.setattr(engine.store, name, away)
        with pytest.raises(WaitTimeout):
            request.acquire(wait_timeout_seconds=0.1)
    held.release()
    assert request.claim_id not in engine.leases.known()
