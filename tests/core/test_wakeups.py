"""How often a process with waiters asks the store, where that cannot tell."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

from penstock.settings import Settings
from penstock.wakeups import Wakeups


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
