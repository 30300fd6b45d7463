"""What was held and waiting is what the history tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.store.contract import Event
from penstock.store.viewing import Movement
from penstock.web.timeline import OVERLAP, WIDTH, Timeline

NOW = 1_000 * WIDTH + WIDTH // 2
MINUTE = 60_000_000


class Told:
    """A store whose history is given."""

    def __init__(self, *lines: Movement) -> None:
        self.lines = sorted(lines, key=lambda line: (line.at, line.line))

    def snapshot_time(self) -> int:
        return NOW

    def movements(self, *, after: tuple[int, int], most: int) -> list[Movement]:
        return [line for line in self.lines if (line.at, line.line) > after][:most]


def granted(line: int, at: int, *, slots: int = 1, waited: int | None = None) -> Movement:
    return Movement(at, line, Event.GRANTED, {"a": slots}, waited, None)


def released(line: int, at: int, held: int, *, slots: int = 1) -> Movement:
    return Movement(at, line, Event.RELEASED, {"a": slots}, None, held)


def means(store: Any, *, held: int = 0, waiting_since: tuple[int, ...] = ()) -> list[tuple[float, float]]:
    timeline = Timeline(lambda: store)
    assert timeline.points("a", NOW, hours=1, held=held, waiting=len(waiting_since)) == []
    timeline.catch_up()
    timeline.catch_up()  # looks again at what may have been committed late, and counts nothing twice
    points = timeline.points("a", NOW, hours=1, held=held, waiting=len(waiting_since), waiting_since=waiting_since)
    assert len(points) == 12
    assert points[-1].at == NOW
    return [(round(point.held, 6), round(point.waiting, 6)) for point in points]


def test_nothing_happened() -> None:
    assert means(Told(), held=2) == [(2, 0)] * 12


def test_what_was_held_for_a_part_of_a_bucket_counts_for_that_part() -> None:
    begun = 997 * WIDTH + WIDTH // 4
    ended = 999 * WIDTH + WIDTH // 2
    found = means(Told(granted(1, begun, slots=2), released(2, ended, ended - begun, slots=2)))
    assert found[:8] == [(0, 0)] * 8
    assert found[8:] == [(1.5, 0), (2, 0), (1, 0), (0, 0)]


def test_who_was_granted_had_waited_before() -> None:
    at = 999 * WIDTH + WIDTH // 2
    assert means(Told(granted(1, at, waited=WIDTH)), held=1)[8:] == [(0, 0), (0, 0.5), (0.5, 0.5), (1, 0)]


def test_who_waits_now_has_waited_since() -> None:
    assert means(Told(), waiting_since=(998 * WIDTH + WIDTH // 2,))[8:] == [(0, 0), (0, 0.5), (0, 1), (0, 1)]


def test_a_grant_that_nobody_took_gives_its_slots_back_and_a_waiter_that_left_held_none() -> None:
    at = 999 * WIDTH
    parked = Movement(at + 2, 2, Event.PARKED, {"a": 1}, None, None)
    withdrawn = Movement(at + 3, 3, Event.WITHDRAWN, {"a": 1}, None, None)
    found = means(Told(granted(1, at + 1), parked, withdrawn))
    assert all(held < 0.001 for held, _ in found)


def test_a_line_that_was_committed_late_is_counted_once() -> None:
    store = Told(granted(2, NOW - MINUTE))
    timeline = Timeline(lambda: store)  # type: ignore[arg-type,return-value]
    timeline.catch_up()
    store.lines.insert(0, granted(1, NOW - MINUTE - OVERLAP // 2))
    timeline.catch_up()
    timeline.catch_up()
    points = timeline.points("a", NOW, hours=1, held=2, waiting=0)
    assert points[-2].held == 0


@pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
def test_a_real_history_is_told_with_what_is_held_at_its_end(engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"a": 2}})
    for _ in range(3):
        with engine.hold("a"):
            pass
    lease = engine.acquire(engine.claim("a"))
    timeline = Timeline(lambda: engine.store)
    timeline.catch_up()
    points = timeline.points("pool:a", engine.store.snapshot_time(), hours=6, held=1, waiting=0)
    assert len(points) == 72
    assert [point.held for point in points[:70]] == [0] * 70
    lease.release()
