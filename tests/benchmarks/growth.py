"""How the time of one acquire or grant grows: stores of several sizes side by side, one cycle on each in turn.

Cycles on the smallest and the largest store alternate in one process, so that a slow moment of the machine meets both.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import penstock
from penstock.claim import Claim
from penstock.decision import Granted, Waiting
from penstock.engine import Engine
from penstock.lease import Lease
from penstock.settings import Settings
from penstock.store import tables as store_tables
from sqlalchemy import Connection, MetaData, create_engine, insert, or_, select, text

from benchmarks.cases import ROOM, Run
from benchmarks.report import Bar, Row, percentile

CYCLES_SECONDS = 60.0
PATIENT = Settings(ticket_seconds=7200.0)
Cycle = Callable[[], tuple[float, float]]
"""Seconds of the step that has a bar, and of the step that goes with it."""


def limits(run: Run) -> Row:
    """More limits; one of them is used."""

    @contextmanager
    def prepared(size: int) -> Iterator[Cycle]:
        names = dict.fromkeys((f"pool-{number}" for number in range(size)), ROOM)
        with run.databases.store("postgresql", names) as url:
            analyze(url)
            with penstock.connect(url) as engine:
                yield lambda: _timed(engine, f"pool-{size // 2}")

    return _grown(
        run, "limits", ("acquire", "release"), prepared, Bar(1.3, "times", most=True), Bar(1.0, "times", most=True)
    )


def waiters_elsewhere(run: Run) -> Row:
    """More waiters, on another limit than the one that is used."""

    @contextmanager
    def prepared(size: int) -> Iterator[Cycle]:
        with _store_with_waiters(run, size) as (engine, _, _):
            yield lambda: _timed(engine, "free")

    return _grown(
        run,
        "waiters on another limit",
        ("acquire", "release"),
        prepared,
        Bar(1.3, "times", most=True),
        Bar(1.0, "times", most=True),
    )


def waiters_here(run: Run) -> Row:
    """More waiters on the limit whose only slot goes from one to the next. The queue keeps its length."""

    @contextmanager
    def prepared(size: int) -> Iterator[Cycle]:
        with _store_with_waiters(run, size) as (engine, lease, queue):

            def cycle() -> tuple[float, float]:
                nonlocal lease
                begun = time.perf_counter()
                lease.release()
                following = engine.request(queue.popleft(), ticket=True)
                while not isinstance(granted := following.step(), Granted):
                    pass
                granted_at = time.perf_counter()
                lease = granted.lease
                queue.append(_enqueue(engine))
                return granted_at - begun, time.perf_counter() - granted_at

            yield cycle

    return _grown(
        run,
        "waiters on the same limit",
        ("grant", "enqueue"),
        prepared,
        Bar(2, "times", most=True),
        Bar(1.2, "times", most=True),
    )


def _grown(
    run: Run,
    what: str,
    steps: tuple[str, str],
    prepared: Callable[[int], Any],
    bar: Bar,
    reach_for: Bar,
) -> Row:
    both: dict[int, list[tuple[float, float]]] = {size: [] for size in run.growth_sizes}
    with ExitStack() as stack:
        cycles = {size: stack.enter_context(prepared(size)) for size in run.growth_sizes}
        for cycle in cycles.values():
            for _ in range(6):
                cycle()
        until = time.monotonic() + CYCLES_SECONDS
        while len(both[run.growth_sizes[-1]]) < run.growth_cycles and time.monotonic() < until:
            for size, cycle in cycles.items():
                both[size].append(cycle())
    times = {size: [first for first, _ in taken] for size, taken in both.items()}
    beside = {size: median(second for _, second in taken) for size, taken in both.items()}
    medians = [(size, median(taken)) for size, taken in times.items()]
    run.growth[what] = medians
    (smallest, before), *_, (largest, after) = medians
    p99 = percentile(times[largest], 99)
    return Row(
        case=f"growth: {smallest} → {largest} {what}",
        ours=f"{before * 1000:.1f} → {after * 1000:.1f} ms",
        ratio=f"{after / before:.2f} times the {steps[0]}",
        bar=str(bar),
        reach_for=str(reach_for),
        met=bar.met(after / before),
        reached=reach_for.met(round(after / before, 1)),  # 1.0 is flat, to the noise
        note=f"{len(times[largest])} each; p99 at {largest}: {p99 * 1000:.1f} ms; "
        f"{beside[largest] / beside[smallest]:.2f} times the {steps[1]}",
        figures={"seconds": {str(size): taken for size, taken in both.items()}},
    )


def _timed(engine: Engine, pool: str) -> tuple[float, float]:
    begun = time.perf_counter()
    lease = engine.acquire(engine.claim(pool))
    acquired = time.perf_counter()
    lease.release()
    return acquired - begun, time.perf_counter() - acquired


@contextmanager
def _store_with_waiters(run: Run, size: int) -> Iterator[tuple[Engine, Lease, deque[Claim]]]:
    """A store where a ticket holds the only slot of `full` and `size` tickets wait for it; first in the queue first."""
    with ExitStack() as stack:
        url = stack.enter_context(run.databases.store("postgresql", {"full": 1, "free": ROOM}))
        engine = stack.enter_context(penstock.connect(url, settings=PATIENT))
        held = engine.request(engine.claim("full"), ticket=True).step()
        assert isinstance(held, Granted)
        multiply(url, _enqueue(engine).claim_id, size - 1)
        analyze(url)
        rows = [row for row in engine.snapshot().claims if not row.slots]
        rows.sort(key=lambda row: (row.rank, row.claim.claim_id))
        waiting = {row["key"]: row["waiting"] for row in engine.status()["limits"]}
        assert len(rows) == waiting["pool:full"] == size, "the waiters are not written as a store writes them"
        yield engine, held.lease, deque(row.claim for row in rows)


def _enqueue(engine: Engine) -> Claim:
    claim = engine.claim("full")
    waiting = engine.request(claim, ticket=True).step()
    assert isinstance(waiting, Waiting)
    return claim


def multiply(url: str, claim_id: str, times: int) -> None:
    """Write a waiter's rows again and again, each with an id and a rank of its own.

    Ten thousand through the front door take minutes. Nothing is assumed about the tables but that a waiter is the rows
    which name its claim, ordered by a column `rank`.
    """
    database = create_engine(url)
    tables = MetaData()
    tables.reflect(database)
    clones = [(str(uuid.uuid4()), later) for later in range(1, times + 1)]
    with database.begin() as connection:
        for table in tables.sorted_tables:
            for row in _naming(connection, table, claim_id) if clones else ():
                connection.execute(insert(table), [_clone(row, claim_id, *clone) for clone in clones])
    database.dispose()


def _naming(connection: Connection, table: Any, claim_id: str) -> list[Mapping[str, Any]]:
    """The rows of one table that name the claim, the history's apart: what happened once did not happen again."""
    columns = [column for column in table.columns if column.type.python_type is str]
    if not columns or table.name.endswith("_history"):
        return []
    return [*connection.execute(select(table).where(or_(*(column == claim_id for column in columns)))).mappings()]


def _clone(row: Mapping[str, Any], claim_id: str, clone_id: str, later: int) -> dict[str, Any]:
    values = {name: clone_id if value == claim_id else value for name, value in row.items()}
    return values | ({"rank": row["rank"] + later} if "rank" in row else {})


def analyze(url: str) -> None:
    """What a server does by itself after such a change: PostgreSQL within a minute, MariaDB within seconds."""
    database = create_engine(url, isolation_level="AUTOCOMMIT")
    with database.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE"))
        elif connection.dialect.name == "mysql":
            for table in store_tables.metadata.sorted_tables:
                connection.execute(text(f"ANALYZE TABLE {table.name}"))
    database.dispose()
