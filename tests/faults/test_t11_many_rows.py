"""T11: 10^5 waiting rows and 10^4 limits. Bars: acquire within 20 ms at the 99th percentile, no sequential scan.

The waiters are copies of one that came through the front door. Which tables were scanned is read from what the server
counts while all kinds of calls are made; SQLite is asked to explain every statement of those calls.
"""

from __future__ import annotations

import random
import re
import sqlite3
import time
from collections.abc import Callable

import penstock
import pytest
from benchmarks.growth import analyze, multiply
from benchmarks.report import percentile
from configuring import configure
from penstock.decision import Granted, Waiting
from penstock.settings import Settings
from penstock.store.contract import Session
from situations import until
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import Pool

from faults.record import LONG, Record

WAITERS, LIMITS, FULL, ROOM = (100_000, 10_000, 10, 4) if LONG else (5_000, 500, 10, 4)
"""Waiting rows, limits, those of them that are full and waited for, slots of the others."""
CYCLES = 500 if LONG else 200
PATIENT = Settings(ticket_seconds=7200.0, sweep_seconds=3600.0)
ROUNDS = 20
SCAN = re.compile(r"SCAN (penstock_(slot|claim|waiter|limit|history)|[closw]|parent)\b(?!.*penstock_limit_draining)")
"""A table of many rows, by its name or by what the statements call it."""
READ = "'Handler_read_rnd_next', 'Handler_read_next'"
LARGE = ("penstock_slot", "penstock_claim", "penstock_waiter", "penstock_limit", "penstock_history")


@pytest.mark.timeout(1800 if LONG else 240)
def test_an_acquire_among_many_rows(
    store_kind: str, request: pytest.FixtureRequest, record_on: Callable[[str, str], Record]
) -> None:
    url: str = request.getfixturevalue("own_url" if store_kind == "mariadb" else "store_url")
    record, rng = record_on(store_kind, url), random.Random(11)
    names = {f"full-{number}": 1 for number in range(FULL)} | {f"free-{number}": ROOM for number in range(LIMITS)}
    with penstock.connect(url, settings=PATIENT) as engine:
        configure(engine, pools={"limits": names})
        for number in range(FULL):
            assert isinstance(engine.request(engine.claim(f"full-{number}"), ticket=True).step(), Granted)
            waiter = engine.claim(f"full-{number}")
            assert isinstance(engine.request(waiter, ticket=True).step(), Waiting)
            multiply(url, waiter.claim_id, WAITERS // FULL - 1)
        analyze(url)
        seconds = list[float]()
        for cycle in range(CYCLES + 20):
            claim = engine.claim(f"free-{rng.randrange(LIMITS)}")
            begun = time.perf_counter()
            lease = engine.acquire(claim)
            seconds += [time.perf_counter() - begun] if cycle >= 20 else []
            lease.release()
        assert sum(row.waiting for row in engine.store.limit_rows()) == WAITERS
    scans_of = {"postgresql": _postgresql_scans, "mariadb": _mariadb_scans, "sqlite": _sqlite_scans}[store_kind]
    done = f"{WAITERS} waiting rows, {LIMITS} limits"
    p99 = percentile(seconds, 99) * 1000
    record(done=f"{done}, {CYCLES} acquires", what="acquire, p99", figure=p99, bar=20, unit="ms")
    scans = scans_of(url, _calls)
    calls = f"{done}; acquire, try, enqueue, withdraw, hand over, {ROUNDS} times each"
    record(done=calls, what="scans of large tables", figure=scans, bar=0)
    in_sweeps = scans_of(url, _sweeps)
    record(done=f"{done}; {ROUNDS} sweeps", what="scans of large tables in sweeps", figure=in_sweeps, bar=0)


def _sweeps(url: str) -> None:
    """What each process does now and then; every other time a session is to be reaped."""
    with penstock.connect(url, settings=PATIENT) as engine:
        for number in range(ROUNDS):
            if number % 2:
                engine.store.open_session(Session(f"dead-{number}", "process", "there", 1, "there", ttl_seconds=-60.0))
            engine.store.sweep()
        assert not engine.store.beat("dead-1", set), "nobody reaped it"


def _calls(url: str) -> None:
    """What those who claim ask a store for."""
    with penstock.connect(url, settings=PATIENT) as engine:
        engine.janitor._sweep_at = float("inf")  # sweeps are looked at apart
        for number in range(ROUNDS):
            engine.acquire(engine.claim(f"free-{number}", f"free-{number + 1}")).release()
            lease = engine.acquire(engine.claim({"free-99": ROOM}))
            engine.try_acquire(engine.claim("free-99"))
            request = engine.request(engine.claim("free-99"))
            assert isinstance(request.step(), Waiting)
            lease.release()
            request.acquire(wait_timeout_seconds=10).release()
            queued = engine.request(engine.claim(f"full-{number % FULL}"))
            assert isinstance(queued.step(), Waiting)
            queued.withdraw()
            engine.store.grant_pass()


def _postgresql_scans(url: str, calls: Callable[[str], None]) -> int:
    """By the statistics of the server, which each connection brings up to date when it ends."""
    watching = create_engine(url, isolation_level="AUTOCOMMIT")

    def ask(statement: str) -> int:
        with watching.connect() as connection:
            return int(connection.execute(text(statement)).scalar_one())

    def settled() -> int:
        until(lambda: ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == 1)
        listed = ", ".join(f"'{name}'" for name in LARGE)
        return ask(f"SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ({listed})")

    before = settled()
    calls(url)
    scans = settled() - before
    watching.dispose()
    return scans


def _mariadb_scans(url: str, calls: Callable[[str], None]) -> int:
    """Rows and entries of indexes read one after the other in a round, in tables of that many rows."""
    watching = create_engine(url, isolation_level="AUTOCOMMIT")

    def read() -> int:
        with watching.connect() as connection:
            counts = connection.execute(text("SHOW GLOBAL STATUS WHERE Variable_name IN (" + READ + ")")).all()
            return sum(int(count) for _, count in counts)

    read()
    price = -read() + read()
    before = read()
    calls(url)
    rows = read() - before - price
    watching.dispose()
    return rows // ROUNDS // LIMITS


def _sqlite_scans(url: str, calls: Callable[[str], None]) -> int:
    """By the plan of every statement that was sent."""
    statements = set[str]()

    def on_connect(raw: sqlite3.Connection, _record: object) -> None:
        raw.set_trace_callback(statements.add)

    event.listen(Pool, "connect", on_connect)
    try:
        calls(url)
    finally:
        event.remove(Pool, "connect", on_connect)
    watching = sqlite3.connect(str(make_url(url).database))
    watching.create_function("penstock_now", 0, lambda: 0)
    unlike = {re.sub(r"'[^']*'|\b\d+\b", "0", statement): statement for statement in statements}
    plans = [
        (row[3], statement)
        for statement in unlike.values()
        if re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)", statement)
        for row in watching.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]
    watching.close()
    scanned = [(plan, statement) for plan, statement in plans if SCAN.match(plan)]
    for plan, statement in scanned:
        print(f"{plan}: {statement}")
    return len(scanned)
