"""How often a process with waiters asks the store, where that cannot tell."""

from __future__ import annotations

import errno
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
from penstock.errors import StoreUnavailable
from penstock.settings import Settings
from penstock.wakeups import Wakeups
from situations import until


class Deaf:
    """A store that answers polls."""

    def __init__(self) -> None:
        self.on_granted: list[Any] = []
        self.news = set[str]()

    def as_upkeep(self) -> Any:
        return nullcontext()

    def to_touch(self, _: Collection[str]) -> set[str]:
        return self.news

    def grant_pass(self) -> int:
        return 0


def test_news_make_the_next_poll_come_soon_but_not_the_same_news_again() -> None:
    """Slots went from process to process at the pace of slow polls: a thousand waiters took ten times the ideal."""
    store, settings = Deaf(), Settings()
    wakeups = Wakeups(store, settings, lambda: None, lambda: None)  # type: ignore[arg-type]
    wakeups._waiters = {"x": [], "y": []}

    def look() -> float:
        wakeups._look()
        return wakeups._next_pause()

    while look() < settings.poll_max_seconds:
        pass
    store.news = {"x"}
    assert look() == settings.poll_min_seconds
    assert look() > settings.poll_min_seconds, "one who does not react is no news"
    store.news = {"x", "y"}
    assert look() == settings.poll_min_seconds


@pytest.mark.parametrize("store_kind", ["postgresql"])
def test_a_process_without_a_file_descriptor_left_polls_instead_of_hearing(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that wakes all waiters of the process ended with OSError, for good; and a connection stayed open."""
    made, connect = list[Any](), psycopg.connect

    def noted(*arguments: Any, **named: Any) -> Any:
        made.append(connect(*arguments, **named))
        return made[-1]

    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(psycopg, "connect", noted)
    monkeypatch.setattr("penstock.store.postgresql.os.pipe", none_left)
    with pytest.raises(StoreUnavailable, match="Too many open files"):  # what the thread goes on after
        store.listen(None)
    assert [connection.closed for connection in made] == [True]


class BreaksInEveryWay(Deaf):
    """A store that answers polls, and on whose listener everything fails with what nobody thought of."""

    def __init__(self) -> None:
        super().__init__()
        self.polls = 0
        self.opened = 0

    def to_touch(self, _: Collection[str]) -> set[str]:
        self.polls += 1
        return set()

    def listen(self, _: str | None) -> Any:
        self.opened += 1
        if self.opened % 2 == 0:
            raise AttributeError("what a driver says of a connection that broke while it was made")
        return self

    def wait(self, _: float) -> None:
        raise ValueError("and while it was read")

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        raise RuntimeError("and while it was closed")


def test_whatever_breaks_in_a_listener_polls_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """The thread ended, and each waiter of the process looked once in 30 s, by itself."""
    store = BreaksInEveryWay()
    settings = Settings(poll_min_seconds=0.01, poll_max_seconds=0.02)
    wakeups = Wakeups(store, settings, lambda: None, lambda: None)  # type: ignore[arg-type]
    wakeups.add("x", lambda: None, asked_at=0.0)
    until(lambda: store.opened >= 4 and store.polls >= 3)
    wakeups.close()
    assert "could not be closed" in caplog.text
