"""What a soak saw, kept as JSON for the page; and its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from soak.judging import LimitSeen

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "soak" / "results.json"
LONG_MINUTES, SHORT_MINUTES = 30.0, 5.0


def minutes() -> float:
    """Of the soak: `PENSTOCK_TEST_SOAK` is `all` (the long form) or a number."""
    asked = os.environ.get("PENSTOCK_TEST_SOAK", "")
    return LONG_MINUTES if asked == "all" else float(asked or SHORT_MINUTES)


@dataclass(frozen=True, kw_only=True)
class HostSeen:
    """What became of one host's work. `begun` and `well` are DAG runs, flow runs or commands."""

    host: str
    what: str
    begun: int
    well: int
    retries: int
    leases: int
    longest_wait_seconds: float


@dataclass(frozen=True, kw_only=True)
class FaultSeen:
    """One fault, `at` seconds from the begin; `seconds`: how long what was ended was away."""

    kind: str
    how: str
    at: float
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Soak:
    """One soak. `at`: when it began, in seconds since 1970; `seconds` until the last was over; `violations` and all
    that follows count what must not be.
    """

    at: float
    minutes: float
    seconds: float
    fed_seconds: float
    versions: dict[str, str]
    holds: int
    cut_short: int
    expired: int
    limits: tuple[LimitSeen, ...]
    hosts: tuple[HostSeen, ...]
    faults: tuple[FaultSeen, ...]
    violations: int
    left_over: int
    undone: int
    losses: int

    @property
    def form(self) -> str:
        """By its length."""
        return "long form" if self.minutes >= LONG_MINUTES else "short form"

    def keep(self, path: Path = RESULTS) -> None:
        """Write it, in place of the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n")


def read(path: Path = RESULTS) -> Soak | None:
    """The one that was kept."""
    if not path.exists():
        return None
    said = json.loads(path.read_text())
    said["limits"] = tuple(
        LimitSeen(**{**one, "held": tuple(one["held"]), "most": tuple(one["most"])}) for one in said["limits"]
    )
    said["hosts"] = tuple(HostSeen(**one) for one in said["hosts"])
    said["faults"] = tuple(FaultSeen(**one) for one in said["faults"])
    return Soak(**said)


def tables(soak: Soak) -> str:
    """In Markdown: limits, hosts, faults, what must not be."""
    parts = [
        _table(
            (
                "limit",
                "capacity",
                "leases",
                "most held at once",
                "the same by the store",
                "capacity in use",
                "waited",
                "median wait",
                "longest",
            ),
            [
                (
                    f"`{one.key}`",
                    str(one.capacity),
                    str(one.leases),
                    str(one.most_held),
                    str(one.most_in_store),
                    f"{one.used_percent:.0f} %",
                    str(one.waited),
                    f"{one.median_wait_seconds:.1f} s",
                    f"{one.longest_wait_seconds:.0f} s",
                )
                for one in soak.limits
            ],
        ),
        _table(
            ("host", "what", "begun", "ended well", "tried again", "leases", "longest wait"),
            [
                (
                    one.host,
                    one.what,
                    str(one.begun),
                    str(one.well),
                    str(one.retries),
                    str(one.leases),
                    f"{one.longest_wait_seconds:.0f} s",
                )
                for one in soak.hosts
            ],
        ),
        _table(("fault", "how", "times", "away for", "at"), fault_rows(soak.faults)),
        _table(
            ("what must not be", "times"),
            [
                ("a limit passed, or a step at work twice", str(soak.violations)),
                ("a slot, waiter or claim left over", str(soak.left_over)),
                ("a DAG run, flow run or command that ended otherwise than without faults", str(soak.undone)),
                ("a living holder told that its lease is lost, or let in without limits", str(soak.losses)),
            ],
        ),
    ]
    return "\n\n".join(parts)


def fault_rows(faults: Sequence[FaultSeen]) -> list[tuple[str, ...]]:
    """One for each kind, in the order of their first."""
    rows = []
    for kind, how in dict.fromkeys((one.kind, one.how) for one in faults):
        mine = [one for one in faults if (one.kind, one.how) == (kind, how)]
        away = [one.seconds for one in mine if one.seconds is not None]
        rows.append(
            (
                kind,
                how,
                str(len(mine)),
                f"{max(away):.0f} s" if away else "",
                ", ".join(f"{one.at // 60:.0f}:{one.at % 60:02.0f}" for one in mine),
            )
        )
    return rows


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *rows])
