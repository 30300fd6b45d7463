"""A holder whose session was ended, or whose callback fails: who is told of the loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.settings import Settings
from situations import held


def test_a_holder_whose_session_was_ended_is_told_by_the_next_beat(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(settings=Settings(session_ttl_seconds=1.0))
    lease, told = engine.acquire(engine.claim("a")), threading.Event()
    lease.on_lost.append(lambda _: told.set())
    store.close_session(lease.session_id)
    assert told.wait(10)
    assert lease.lost
    again = engine.acquire(engine.claim("a"))
    assert again.session_id != lease.session_id
    assert lease.lost, "lost stays lost, though the process has a new session"
    again.release()


def test_a_callback_that_fails_keeps_nobody_else_from_being_told(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 2}})
    engine, told = new_engine(), list[str]()
    for name in ("first", "second"):
        lease = engine.acquire(engine.claim("a"))
        lease.on_lost.append(lambda _: 1 / 0)
        lease.on_lost.append(lambda _, name=name: told.append(name))
    engine.session_is_gone(engine.session_id())
    assert told == ["first", "second"]


def test_who_comes_to_be_told_after_the_loss_is_told_at_once(
    new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    """He was never told: what he guarded went on without its slots."""
    configure(pools={"limits": {"a": 1}})
    engine, told = new_engine(), list[str]()
    lease = engine.acquire(engine.claim("a"))
    lease.on_lost.append(lambda _: told.append("before"))
    engine.session_is_gone(engine.session_id())
    lease.on_lost.append(lambda _: told.append("after"))
    assert told == ["before", "after"]


def test_a_grant_to_a_session_that_was_lost_meanwhile_is_no_grant(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine stood still between the grant and its answer: a lease was given out that nobody would call lost."""
    configure(pools={"limits": {"a": 2}})
    engine, acquire, sessions = new_engine(), store.acquire, list[str]()

    def stand_still_once(*arguments: Any, **named: Any) -> Any:
        outcome = acquire(*arguments, **named)
        if not sessions:
            engine.session_is_gone(named["owner"].session_id)
        sessions.append(named["owner"].session_id)
        return outcome

    monkeypatch.setattr(store, "acquire", stand_still_once)
    lease = engine.acquire(engine.claim("a"))
    assert not lease.lost
    assert lease.session_id == sessions[-1] != sessions[0]
    lease.release()


def test_a_lease_that_is_lost_before_it_is_kept_is_not_kept(
    new_engine: Callable[..., Engine], configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine, told = new_engine(), list[str]()
    keep = engine.leases.keep

    def stand_still(lease: Any, **named: Any) -> Any:
        engine.session_is_gone(lease.session_id)
        return keep(lease, **named)

    monkeypatch.setattr(engine.leases, "keep", stand_still)
    lease = engine.acquire(engine.claim("a"))
    lease.on_lost.append(lambda lost: told.append(lost.claim_id))
    assert told == [lease.claim_id]
    assert lease.claim_id not in engine.leases.known(), "no beat answers for it any more"


def test_nobody_else_can_be_granted_before_a_holder_is_told(
    new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    """A beat that was under way when the session was lost gave the slots back before the holder was told."""
    configure(pools={"limits": {"a": 1}})
    engine, left = new_engine(), list[int]()
    lease = engine.acquire(engine.claim("a"))

    def told(lost: Any) -> None:
        assert engine.store.beat(lost.session_id, engine.leases.known)
        left.append(held(engine, "pool:a"))
        lost.release()  # says nothing to the store that the loss has not said

    lease.on_lost.append(told)
    engine.session_is_gone(lease.session_id or "")
    assert left == [1]
    assert not engine.leases.known()
