"""What the fault runs found: a row for each figure, its bar, and whether that is met; kept as JSON for the page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.report import Bar
from penstock.store.sql import SqlStore

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "faults" / "results.json"
"""What the runs of this checkout found."""
LAST_RUN = ROOT / "tests" / "faults" / "last_run.json"
"""What is on the page."""
LONG = os.environ.get("PENSTOCK_TEST_FAULTS") == "all"
"""Whether each fault comes as often as its bar says; else a few times."""
FAULTS = {
    "T1": "kill -9 of holders",
    "T2": "kill -9 of waiters, also between grant and acknowledgement",
    "T3": "kill -9 between a release and its look for waiters",
    "T4": "the database restarts",
    "T6": "a holder cut off from the database",
    "T7": "SIGSTOP beyond the TTL, then SIGCONT",
    "T7b": "SIGSTOP inside a transaction",
    "T8": "the heartbeat starved",
    "T9": "clients' clocks wrong and jumping",
    "T10": "1000 waiters at once",
    "T11": "many waiting rows and limits",
    "T12": "dropped replies, duplicate and replayed calls",
    "T13": "a wide claim against a stream of narrow ones",
    "T14": "several pools in opposite order",
    "T15": "live changes under load",
    "T16": "no connection, no disk, read-only",
}
HEAD = ("fault", "store", "done", "what", "figure", "bar", "met", "taken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure against its bar: at most (`most`) or at least `bar`, in `unit`.

    `at`: seconds since 1970. `load`: the machine's over the minute before, that of the fault itself with it.
    """

    fault: str
    store: str
    done: str
    what: str
    figure: float
    bar: float
    unit: str
    most: bool
    long: bool
    at: float
    version: str
    test: str = ""
    load: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """A new run replaces the rows of the same key."""
        return self.fault, self.store, self.test

    @property
    def met(self) -> bool:
        """Whether the figure passes."""
        return Bar(self.bar, self.unit, most=self.most).met(self.figure)

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of HEAD."""
        sign = "" if self.most and not self.bar else "≤ " if self.most else "≥ "
        figure, bar = (_number(value) for value in (self.figure, self.bar))
        met = "yes" if self.met else "NO"
        taken = [time.strftime("%Y-%m-%d", time.gmtime(self.at))]
        taken += [f"load {self.load:.0f}"] if self.load is not None else []
        taken += ["long form"] if self.long else []
        return (
            self.fault,
            self.store,
            self.done,
            self.what,
            f"{figure} {self.unit}".rstrip(),
            f"{sign}{bar} {self.unit}".rstrip(),
            met,
            ", ".join(taken),
        )


class Record(Protocol):
    """Note one figure of this fault on the store of this test."""

    def __call__(self, *, done: str, what: str, figure: float, bar: float, unit: str = "", most: bool = True) -> Row:
        """`bar` is the most that `figure` may be, or (`most=False`) the least."""


class Recorder:
    """The rows of one session."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on(self, fault: str, store: str, url: str, test: str) -> Record:
        """What notes figures of a fault on that store that this test finds."""
        sql = SqlStore(url)
        version = sql.server()
        sql.close()

        def record(*, done: str, what: str, figure: float, bar: float, unit: str = "", most: bool = True) -> Row:
            row = Row(
                fault=fault,
                store=store,
                done=done,
                what=what,
                figure=figure,
                bar=bar,
                unit=unit,
                most=most,
                long=LONG,
                at=time.time(),
                version=version,
                test=test,
                load=os.getloadavg()[0],
            )
            self.rows.append(row)
            return row

        return record

    def keep(self, path: Path = RESULTS) -> None:
        """Write the rows, in place of those of the same tests and stores from runs before."""
        write(path, merged(read(path), self.rows))


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The new rows, and the old ones that they do not replace, in order."""
    replaced = {row.key for row in new}
    return in_order([row for row in old if row.key not in replaced] + list(new))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Keep them there, each on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def read(path: Path) -> list[Row]:
    """The rows that were kept."""
    return [Row(**values) for values in _json(path)]


def _json(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    values: list[dict[str, Any]] = json.loads(path.read_text())
    return values


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By fault, as they are numbered, then as they were noted."""
    faults = list(FAULTS)
    return sorted(rows, key=lambda row: faults.index(row.fault))


def text_table(rows: Sequence[Row]) -> str:
    """For a terminal."""
    lines = [HEAD, *(row.cells() for row in in_order(rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """For a page."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in in_order(rows))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"
