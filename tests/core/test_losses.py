"""What a process finds that was stopped, or cut off, for too long, and what it leaves behind when the store is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from penstock.decision import Granted, Waiting
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
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
