"""What pages and API read of a store: the same answers for both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.report import all_limits, limit_json
from penstock.rules import configured_keys, resolve_limit
from penstock.store.contract import HistoryRow, LimitRow, Store
from penstock.web import answers
from penstock.web.plots import Point
from penstock.web.timeline import HOURS, Timeline

MOST_CHANGES = 1_000
ORDERS: dict[str, Callable[[dict[str, Any]], tuple[int | str, ...]]] = {
    "busy": lambda limit: (-limit["waiting"], -limit["held"], limit["key"]),
    "wait": lambda limit: (-(limit["waited"] or 0), -limit["waiting"], limit["key"]),
    "held": lambda limit: (-limit["held"], -limit["waiting"], limit["key"]),
    "key": lambda limit: (limit["key"],),
}
"""The orders of the overview, by name."""


class Looking:
    """Reads through an engine that claims nothing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.timeline = Timeline(lambda: self.store)
        self._changes: tuple[int, tuple[HistoryRow, ...]] = (-1, ())
        self._lock = threading.Lock()
        self._configuration: tuple[int, Concurrency] | None = None

    @property
    def store(self) -> Store:
        """The store; the first time it is made sure that its tables are this version's. Raises as that does."""
        self.engine.configuration()
        return self.engine.store

    def configuration(self) -> tuple[int, Concurrency]:
        """The version in force and what it says; read into rules only when it is a new one."""
        stored = self.store.configuration()
        known = self._configuration
        if known is None or known[0] != stored.version:
            known = self._configuration = (stored.version, Concurrency.from_document(stored.document))
        return known

    def limits(self, text: str = "", *, order: str = "busy", offset: int = 0, most: int = 100) -> answers.Limits:
        """The limits whose key or description contains the text."""
        self.timeline.watch()
        rows, (_, concurrency) = self.store.limit_rows(), self.configuration()
        now, wanted = self.store.snapshot_time(), text.lower()
        since = {row.key: now - row.waiting_since for row in rows if row.waiting_since is not None}
        found = [
            {**values, "waited": since.get(values["key"])}
            for values in all_limits(rows, concurrency)
            if wanted in values["key"].lower() or wanted in (values["description"] or "").lower()
        ]
        found.sort(key=ORDERS.get(order, ORDERS["busy"]))
        return answers.Limits(
            count=len(found),
            offset=offset,
            held=sum(values["held"] for values in found),
            waiting=sum(values["waiting"] for values in found),
            limits=[answers.limit_of(values, values["waited"], now) for values in found[offset : offset + most]],
        )

    def limit(self, key: str) -> answers.Limit | None:
        """One limit, in use or configured; else None."""
        row, (_, concurrency) = self.store.limit_row(key), self.configuration()
        if row is None and key not in configured_keys(concurrency):
            return None
        capacity, source = resolve_limit(key, concurrency)
        now, since = self.store.snapshot_time(), row.waiting_since if row is not None else None
        counts = (row.held, row.waiting) if row is not None else (0, 0)
        values = limit_json(LimitRow(key, capacity, source, *counts), concurrency)
        return answers.limit_of(values, None if since is None else now - since, now)

    def holders(self, key: str, *, offset: int = 0, most: int = 50) -> answers.Claims:
        """Who holds it."""
        return answers.claims_of(self.store.holders(key, offset=offset, most=most), offset=offset)

    def queue(self, key: str, *, offset: int = 0, most: int = 50) -> answers.Claims:
        """Who waits for it, in order."""
        return answers.claims_of(self.store.queue(key, offset=offset, most=most), offset=offset, limit=key)

    def search(self, text: str, *, offset: int = 0, most: int = 50) -> answers.Claims:
        """Claims by id, run, op, name, tag."""
        return answers.claims_of(self.store.search(text, offset=offset, most=most), offset=offset)

    def spark(self, limit: answers.Limit, now: int) -> list[Point]:
        """What was held of it in the last six hours."""
        return self.timeline.points(limit.key, now, hours=6, held=limit.held, waiting=limit.waiting)

    def past(self, limit: answers.Limit, *, hours: int = HOURS) -> list[Point]:
        """What was held of it and waiting for it."""
        self.timeline.watch()
        since = tuple(self.store.waiting_since(limit.key))
        now = self.store.snapshot_time()
        return self.timeline.points(
            limit.key, now, hours=min(hours, HOURS), held=limit.held, waiting=len(since), waiting_since=since
        )

    def changes(self, key: str) -> answers.Changes:
        """Who changed it when; read again only when a new version is in force."""
        version = self.configuration()[0]
        with self._lock:
            known, rows = self._changes
        if known != version:
            rows = self.store.changes(most=MOST_CHANGES)
            with self._lock:
                self._changes = (version, rows)
        return answers.changes_of(list(rows), key)
