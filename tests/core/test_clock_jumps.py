"""A store's clock that is set: what counts as a jump of it, and what is only a process that was not let run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.settings import Settings
from penstock.store import reaping
from penstock.store.contract import Session
from penstock.store.reaping import ClockJumps

SECOND = 1_000_000


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)  # the oracle's is our own
@pytest.mark.parametrize("jump_seconds", [9, -9])
def test_a_step_of_less_than_ten_seconds_costs_no_lease_of_a_short_ttl(
    store: Any, new_engine: Callable[..., Engine], jump_seconds: int
) -> None:
    engine = new_engine(settings=Settings(session_ttl_seconds=3))
    lease = engine.acquire(engine.claim("a"))
    engine._session._stop.set()  # its looks would see the jump
    store.sweep()
    store.clock_shift += jump_seconds * SECOND
    for _ in range(3):
        assert store.sweep().expired == ()
    assert store.beat(lease.session_id, engine.leases.known)


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_session_that_is_opened_after_the_last_look_counts_too(store: Any) -> None:
    store.sweep()
    store.open_session(Session("s", "core", "test", 1, "here", 3.0))
    store.clock_shift += 9 * SECOND
    store.sweep()
    assert store.beat("s", list)


class Clocks:
    """The store's, which is asked, and our own; in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.steady = 1_000_000.0, 500.0
        monkeypatch.setattr(reaping, "steady_seconds", lambda: self.steady)

    def go_on(self, seconds: float) -> None:
        """Both."""
        self.now += seconds
        self.steady += seconds

    def asked(self, before: float = 0.0, after: float = 0.0) -> Callable[[], int]:
        """The question, and how long this process was stopped before and after the answer was given."""

        def ask() -> int:
            self.go_on(before)
            answer = int(self.now * SECOND)
            self.go_on(after)
            return answer

        return ask


@pytest.mark.parametrize(("before", "after"), [(4.0, 0.0), (0.0, 4.0), (4.0, 4.0)])
def test_an_answer_that_comes_late_is_no_jump(monkeypatch: pytest.MonkeyPatch, before: float, after: float) -> None:
    clocks, jumps = Clocks(monkeypatch), ClockJumps()
    for late in (False, True, False, True, True, False):
        clocks.go_on(0.5)
        assert not jumps.seen(clocks.asked(before, after) if late else clocks.asked(), 3 * SECOND)


@pytest.mark.parametrize(("ttl", "least"), [(1, 0.5), (3, 1.5), (30, 10.0), (None, 10.0)])
@pytest.mark.parametrize("way", [1, -1])
def test_what_half_of_the_shortest_ttl_cannot_bear_is_a_jump(
    monkeypatch: pytest.MonkeyPatch, ttl: int | None, least: float, way: int
) -> None:
    clocks, jumps, shortest = Clocks(monkeypatch), ClockJumps(), None if ttl is None else ttl * SECOND
    assert not jumps.seen(clocks.asked(), shortest)
    clocks.now += way * (least - 0.1)
    assert not jumps.seen(clocks.asked(), shortest)
    clocks.now += way * (least + 0.1)
    assert jumps.seen(clocks.asked(), shortest)
    assert jumps.seen(clocks.asked(), shortest), "until it is borne"
    jumps.borne()
    assert not jumps.seen(clocks.asked(), shortest)
