"""The plainest semaphore on PostgreSQL: one session-level advisory lock for each slot, tried one after the other.

Nothing of it is durable: no row is written, no order is kept, nobody can see who holds what.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.crew import Cycle
from benchmarks.peer import serve


@contextmanager
def locks(*, client: int, url: str, capacity: int, hold_seconds: float) -> Iterator[Cycle]:
    """Each client begins at a slot of its own."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()

        def locked(slot: int) -> bool:
            row = cursor.execute("SELECT pg_try_advisory_lock(7, %s)", (slot,)).fetchone()
            return row is not None and bool(row[0])

        def cycle() -> None:
            slot = client % capacity
            while not locked(slot):
                slot = (slot + 1) % capacity
            if hold_seconds:
                time.sleep(hold_seconds)
            cursor.execute("SELECT pg_advisory_unlock(7, %s)", (slot,))

        yield cycle


if __name__ == "__main__":
    serve("advisory locks", locks, lambda capacity: {"url": sys.argv[1], "capacity": capacity}, preload=("psycopg",))
