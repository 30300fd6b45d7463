"""T7b: a process that is stopped in the middle of a transaction. Bar: on a server the others are served within 3 s."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import penstock
import pytest
from configuring import configure
from penstock import StoreUnavailable
from penstock.settings import Settings
from penstock.store import granting, stepwise

from faults.record import LONG, Record

ROUNDS = 20 if LONG else 2


def stop_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stopping_after(work: Callable[..., Any]) -> Callable[..., Any]:
    """The work, and then a stop: what it wrote and locked is not committed yet."""

    def stopped(*arguments: Any, **named: Any) -> Any:
        done = work(*arguments, **named)
        stop_here()
        return done

    return stopped


def stopping_before_it_writes(acquire: Callable[..., Any]) -> Callable[..., Any]:
    """The slots are picked and locked; what is written goes to some databases in one message with the commit."""

    def stopped(cursor: Any, ask: Any, write: Callable[..., Any]) -> Any:
        def stop_and_write(*arguments: Any) -> Any:
            stop_here()
            return write(*arguments)

        return acquire(cursor, ask, stop_and_write)

    return stopped


def plant(place: str) -> None:
    """In the process that is to stop: where."""
    if place == "pass":
        granting.grant = stopping_after(granting.grant)
    elif place == "acquire":
        stepwise.acquire = stopping_before_it_writes(stepwise.acquire)
    else:
        stepwise.release = stopping_after(stepwise.release)


@contextmanager
def stopped_process(url: str, place: str) -> Iterator[int]:
    """A process that has stopped itself at that place; continued and ended afterwards."""
    if (pid := os.fork()) == 0:
        try:
            settings = Settings(on_store_error="fail")
            engine = penstock.connect(url, settings=settings)
            request = engine.request(engine.claim("a"))
            if place == "pass":
                plant(place)
                engine.store._grant_batch()  # type: ignore[attr-defined]  # the steps of a pass, one by one
            elif place == "release":
                lease = engine.acquire(engine.claim("a"))
                plant(place)
                lease.release()
            else:
                engine.session_id()
                plant(place)
                request.step()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it never came to {place}"
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, 0)


# The other places are one message to the server, which finishes it by itself.
@pytest.mark.parametrize(
    ("store_kind", "place"),
    [("postgresql", "pass"), ("mariadb", "pass"), ("mariadb", "acquire")],
    indirect=["store_kind"],
)
def test_others_are_served_again_when_one_is_stopped_inside_a_transaction(
    store_url: str, record: Record, place: str
) -> None:
    served_after = []
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": 2, "b": 1}})
        for _ in range(ROUNDS):
            first = engine.acquire(engine.claim("b"))
            with stopped_process(store_url, place):
                stopped_at = time.monotonic()
                waiting = engine.request(engine.claim("b"))
                waiting.step()
                first.release()
                waiting.acquire().release()  # by a pass, which needs the lock that the stopped one has
                with engine.hold("a", wait_timeout_seconds=20):  # a slot beside the one that it has locked
                    served_after.append(time.monotonic() - stopped_at)
    done = f"{ROUNDS} stopped in {'a grant pass' if place == 'pass' else 'an acquire'}"
    record(done=done, what="others served after", figure=max(served_after), bar=3, unit="s")
    assert max(served_after) < 10, "by the bound on the transaction, not by chance"


@pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("place", ["pass", "acquire", "release"])
def test_on_sqlite_the_others_are_told_and_served_once_the_stopped_one_is_killed(store_url: str, place: str) -> None:
    """Its write lock is the system's, which knows no time-out: only its end, or its going on, frees it."""
    settings = Settings(on_store_error="fail")
    with penstock.connect(store_url, settings=settings) as engine:
        configure(engine, pools={"limits": {"a": 2, "b": 1}})
        engine.session_id()
        with stopped_process(store_url, place), pytest.raises(StoreUnavailable, match="locked"):
            engine.try_acquire(engine.claim("b"))
        with engine.hold("b", wait_timeout_seconds=20):
            pass
