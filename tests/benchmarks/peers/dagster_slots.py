"""Dagster's pools: the slots in its event log storage on PostgreSQL, as its executor claims and frees them."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

from benchmarks.crew import Cycle
from benchmarks.peer import serve

POOL = "benchmark"
RETRY_SECONDS = 0.005  # in Dagster's favour: its executor waits 1 s and more


@contextmanager
def slots(*, client: int, url: str, hold_seconds: float) -> Iterator[Cycle]:
    """Each cycle is a step of a run of its own."""
    from dagster_postgres.event_log import PostgresEventLogStorage

    storage = PostgresEventLogStorage(url, should_autocreate_tables=False)

    def cycle() -> None:
        run_id = str(uuid.uuid4())
        while not storage.claim_concurrency_slot(POOL, run_id, "step").is_claimed:
            time.sleep(RETRY_SECONDS)
        if hold_seconds:
            time.sleep(hold_seconds)
        storage.free_concurrency_slot_for_step(run_id, "step")

    yield cycle
    storage.dispose()


def main(url: str) -> None:
    from dagster_postgres.event_log import PostgresEventLogStorage

    storage = PostgresEventLogStorage(url)

    def prepare(capacity: int) -> Mapping[str, str]:
        storage.set_concurrency_slots(POOL, capacity)
        return {"url": url}

    serve(f"Dagster {version('dagster')}", slots, prepare, preload=("dagster", "dagster_postgres.event_log"))


if __name__ == "__main__":
    main(sys.argv[1].replace("postgresql://", "postgresql+psycopg2://", 1))  # the driver that Dagster installs
