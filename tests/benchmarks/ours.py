"""What the clients do through Penstock's public interface."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.crew import Cycle

PRELOAD = ("penstock.connection", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.mysql.pymysql")


@contextmanager
def cycles(*, client: int, url: str, pools: Sequence[str], hold_seconds: float = 0.0) -> Iterator[Cycle]:
    """Acquire and release, holding for so long."""
    import penstock

    with penstock.connect(url) as engine:

        def cycle() -> None:
            with engine.hold(*pools):
                if hold_seconds:
                    time.sleep(hold_seconds)

        yield cycle


@contextmanager
def holds(*, client: int, url: str, pool: str, hold_seconds: float) -> Iterator[Cycle]:
    """Hold for so long. Each cycle returns when it asked, when its code ran, and when it began to let go.

    By the monotonic clock, which all processes of a Linux machine share.
    """
    import penstock

    with penstock.connect(url) as engine:

        def cycle() -> tuple[float, float, float]:
            asked = time.monotonic()
            with engine.hold(pool):
                inside = time.monotonic()
                time.sleep(hold_seconds)
                return asked, inside, time.monotonic()

        yield cycle
