"""The black-box checker: who was inside when, by the work's own monotonic clock, against what may be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

Interval = tuple[float, float]


def read_intervals(path: Path) -> dict[str, list[Interval]]:
    """Label → intervals, from lines of `LABEL BEGIN END` in seconds of one machine's monotonic clock."""
    intervals: dict[str, list[Interval]] = defaultdict(list)
    for line in path.read_text().splitlines():
        label, begin, end = line.rsplit(" ", 2)
        intervals[label].append((float(begin), float(end)))
    return dict(intervals)


def most_at_once(intervals: Iterable[Interval]) -> int:
    """The most that ever were inside together, by a sweep line; one that ends when another begins is not beside it."""
    return most_held((begin, end, 1) for begin, end in intervals)


def most_held(intervals: Iterable[tuple[float, float, int]]) -> int:
    """As `most_at_once`, each interval with the slots that it takes: the most slots that ever were taken together."""
    steps = sorted(
        step for begin, end, slots in intervals for step in ((begin, 1, slots), (max(begin, end), -1, slots))
    )
    most = inside = 0
    for _, change, slots in steps:
        inside += change * slots
        most = max(most, inside)
    return most
