"""The rows of the table, and the table as text and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

HEAD = ("case", "raw/s", "SA/s", "ours", "ratio", "bar", "reach for", "bar met", "reached", "note")


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure must be at least, or (`most`) at most, `value`; `of` says what it is a ratio of, or its unit."""

    value: float
    of: str
    most: bool = False

    def met(self, figure: float) -> bool:
        """Whether the figure passes."""
        return figure <= self.value if self.most else figure >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.value:g} {self.of}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case as it came out. `met` and `reached` are None where there is no bar or nothing was measured."""

    case: str
    raw: float | None = None
    sqlalchemy: float | None = None
    ours: str = ""
    ratio: str = ""
    bar: str = ""
    reach_for: str = ""
    met: bool | None = None
    reached: bool | None = None
    note: str = ""
    skipped: bool = False
    violations: int = 0
    errors: tuple[str, ...] = ()
    """What cycles of ours raised."""
    figures: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of HEAD."""
        return (
            self.case,
            _rate(self.raw),
            _rate(self.sqlalchemy),
            self.ours,
            self.ratio,
            self.bar,
            self.reach_for,
            "skipped" if self.skipped else _yes(self.met),
            _yes(self.reached),
            "; ".join(part for part in (self.note, self.errors and f"{len(self.errors)} cycles failed") if part),
        )


def skipped(case: str, reason: str) -> Row:
    """A case that could not be measured here."""
    return Row(case=case, skipped=True, note=reason)


def ratio_of_turns(ours: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of neighbouring turns: what slows the machine for a while slows both."""
    return median(mine / theirs for mine, theirs in zip(ours, other, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def text_table(rows: Sequence[Row]) -> str:
    """For a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([padded[0], "  ".join("-" * width for width in widths), *padded[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """For a page."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "NO"
