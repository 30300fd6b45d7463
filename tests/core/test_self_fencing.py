"""A holder whose session was ended, or whose callback fails: who is told of the loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from penstock.engine import Engine
from penstock.settings import Settings


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
        lease.on_lost += [lambda _: 1 / 0, lambda _, name=name: told.append(name)]  # type: ignore[misc]
    engine.session_is_gone(engine.session_id())
    assert told == ["first", "second"]
