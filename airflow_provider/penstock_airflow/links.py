"""Where a person can look at what a task waits for. Runs in the API server, at each look at a task's page."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError, StoreUnavailable

from penstock_airflow import claims, installation

if TYPE_CHECKING:
    from penstock.store.contract import ClaimRow, Snapshot
    from penstock.store.sql import SqlStore

log = logging.getLogger("penstock.airflow")
SNAPSHOT_SECONDS = 2.0
FAILED_SECONDS = 30.0
"""So long a store that did not answer is not asked again: pages of Airflow wait for it meanwhile."""
"""How old what is told may be: a page that somebody has open asks again and again, for every task it shows."""
_SCHEMES = ("https://", "http://")


def holder_page(ti_key: Any) -> str:
    """The page of the first that bars this task instance, in the order of its limits; "" where there is none to show.

    A store that is away is said in the log: a page must not fail for it, nor wait.
    """
    if not installation.store_is_configured():
        return ""
    try:
        snapshot = _latest.snapshot()
    except PenstockError as error:
        log.warning("Penstock: no link to who holds the slot: %s", error)
        return ""
    waiting = _waiter(snapshot, ti_key)
    return "" if waiting is None else _page(snapshot, waiting)


def _waiter(snapshot: Snapshot, ti_key: Any) -> ClaimRow | None:
    """What waits for this task instance: its own claim, else its run's."""
    from penstock.explain import WAITS  # noqa: PLC0415  # SQLAlchemy and pydantic load at the first look

    run = (claims.HOST, installation.installation().deployment, claims.run_id(ti_key.dag_id, ti_key.run_id))
    op_id = ti_key.task_id if ti_key.map_index < 0 else f"{ti_key.task_id}[{ti_key.map_index}]"
    rows = [
        row
        for row in snapshot.claims
        if row.state in WAITS
        and (row.claim.host, row.claim.deployment, row.claim.run_id) == run
        and row.claim.op_id in (op_id, None)
    ]
    return max(rows, key=lambda row: row.claim.op_id is not None, default=None)


def _page(snapshot: Snapshot, waiting: ClaimRow) -> str:
    """Only what a browser opens as a page: the link was written by another host."""
    from penstock.queue import Queue  # noqa: PLC0415

    queue = Queue(snapshot)
    in_the_way = [row for reason in queue.barring(waiting) for row in queue.holders(reason.limit)]
    pages = (row.claim.url or "" for row in [*in_the_way, *queue.ahead(waiting).first])
    return next((page for page in pages if page.startswith(_SCHEMES)), "")


class _Latest:
    """The store as it was a moment ago, on one connection for all threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: SqlStore | None = None
        self._read: Snapshot | None = None
        self._read_at = 0.0
        self._failed_at = -math.inf

    def snapshot(self) -> Snapshot:
        """Raises ConfigError, StoreUnavailable, SchemaMismatch."""
        with self._lock:
            if time.monotonic() - self._failed_at < FAILED_SECONDS:
                raise StoreUnavailable("the store did not answer a moment ago")
            if self._read is None or time.monotonic() - self._read_at > SNAPSHOT_SECONDS:
                try:
                    self._read = self._fresh()
                except StoreUnavailable:
                    self._failed_at = time.monotonic()
                    raise
                self._read_at = time.monotonic()
            return self._read

    def _fresh(self) -> Snapshot:
        if self._store is None:
            from penstock.connection import existing_store  # noqa: PLC0415

            store = existing_store(installation.store_url(installation.installation()))
            store.check_schema()
            self._store = store
        return self._store.snapshot()


_latest = _Latest()
