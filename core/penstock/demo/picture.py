"""Who holds and who waits, live; and at the end what each limit saw."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.store.contract import Event, HistoryRow

COLOURS = {"airflow": "cyan", "prefect": "magenta"}
SIGNS = {Event.GRANTED: 1, Event.RELEASED: -1, Event.EXPIRED: -1, Event.PARKED: -1}


@dataclass(slots=True)
class LimitStory:
    """What a limit saw: the most slots ever held, grants by host, waits of the grants in seconds."""

    capacity: int | None
    most_held: int = 0
    grants: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waits: list[float] = field(default_factory=list)


def tell(history: Sequence[HistoryRow], capacities: dict[str, int | None]) -> dict[str, LimitStory]:
    """Replay the history of an SQLite store, whose events stand in the order in which they happened."""
    stories = {key: LimitStory(capacity) for key, capacity in capacities.items()}
    held: dict[str, int] = defaultdict(int)
    for row in history:
        for key, slots in row.slots.items():
            story = stories.setdefault(key, LimitStory(None))
            held[key] += SIGNS.get(row.event, 0) * (slots or 0)
            story.most_held = max(story.most_held, held[key])
            if row.event is Event.GRANTED:
                story.grants[row.host or ""] += 1
                story.waits.append(row.wait_seconds or 0.0)
    return stories


def story_table(stories: dict[str, LimitStory]) -> Table:
    """The table at the demo's end."""
    table = Table(title="What each limit saw", title_justify="left")
    for name in (
        "limit",
        "capacity",
        "most ever held",
        "airflow grants",
        "prefect grants",
        "median wait",
        "longest wait",
    ):
        table.add_column(name, justify="left" if name == "limit" else "right")
    for key, story in sorted(stories.items()):
        waits = story.waits or [0.0]
        table.add_row(
            key,
            "unlimited" if story.capacity is None else str(story.capacity),
            str(story.most_held),
            str(story.grants["airflow"]),
            str(story.grants["prefect"]),
            f"{statistics.median(waits):.1f} s",
            f"{max(waits):.1f} s",
        )
    return table


def live_table(status: dict[str, Any], seconds: float) -> Table:
    """Who holds and who waits now, one row a limit."""
    table = Table(title=f"{seconds:5.1f} s", title_justify="left", expand=True)
    table.add_column("limit", no_wrap=True)
    table.add_column("held", no_wrap=True)
    table.add_column("by", ratio=2)
    table.add_column("waiting", ratio=1)
    for limit in status["limits"]:
        key, capacity = limit["key"], limit["capacity"]
        holders = [lease for lease in status["leases"] if any(slot["limit"] == key for slot in lease["slots"])]
        queue = [w for w in status["waiters"] if any(barrier["limit"] == key for barrier in w["blocked_by"])]
        by, waiting = Text(), Text()
        for lease in holders:
            by.append(f"■ {_short(lease)}  ", COLOURS.get(lease["host"], ""))
        for host, colour in COLOURS.items():
            if count := sum(waiter["host"] == host for waiter in queue):
                waiting.append(f"{host} {'□' * count}  ", colour)
        table.add_row(key, f"{limit['held']} of {'∞' if capacity is None else capacity}", by, waiting)
    return table


def line(status: dict[str, Any]) -> str:
    """The same in one line, for a pipe."""
    parts = []
    for limit in status["limits"]:
        hosts = [lease["host"] for lease in status["leases"] if any(s["limit"] == limit["key"] for s in lease["slots"])]
        by = " ".join(f"{host} {hosts.count(host)}" for host in COLOURS if host in hosts)
        waiting = sum(any(b["limit"] == limit["key"] for b in w["blocked_by"]) for w in status["waiters"])
        parts.append(f"{limit['key']} {limit['held']}/{limit['capacity']} ({by or 'free'}, {waiting} waiting)")
    return " | ".join(parts)


def _short(lease: dict[str, Any]) -> str:
    op = lease["op_id"] or "run"
    return f"{lease['host']} {op if len(op) < 24 else op[-6:]}"
