"""How long the concurrency page and its API take over a large store: `python tests/benchmarks/of_page.py`."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":  # run as a file, this is in no package yet
    sys.path[0] = str(Path(__file__).parents[1])

import httpx
import penstock
from penstock.store import tables as t
from sqlalchemy import create_engine, insert, select

from benchmarks.databases import Databases, Skipped
from benchmarks.growth import PATIENT, analyze
from benchmarks.report import percentile

HOUR = 3_600_000_000
"""In µs."""
SHARED, LARGE = "shared", "pool-0000"
ADDRESSES = {
    "overview": "/",
    "overview, last page": "/?order=key&offset=900",
    "overview, some": "/?q=pool-01&order=wait",
    "limit, 10 000 waiters": f"/limit?key=pool:{SHARED}",
    "limit, their last page": f"/limit?key=pool:{SHARED}&offset=9950&hours=24",
    "limit, 5 000 waiters": f"/limit?key=pool:{LARGE}",
    "limit, 5 waiters": "/limit?key=pool:pool-0500",
    "search, one run": "/search?q=run-777-2",
    "search, all": "/search",
    "search, a tag": "/search?q=team%3Dnumber-3",
    "API, limits": "/api/limits",
    "API, limit": f"/api/limit?key=pool:{SHARED}",
    "API, queue": f"/api/limit/queue?key=pool:{SHARED}&offset=5000",
    "API, holders": f"/api/limit/holders?key=pool:{SHARED}",
    "API, past": f"/api/limit/past?key=pool:{SHARED}",
    "API, changes": f"/api/limit/changes?key=pool:{SHARED}",
    "API, claims": "/api/claims?q=run-777-2",
}


def main() -> int:
    """Print a table for each store; 1 where an answer was none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default="postgresql,sqlite", help="which, of postgresql, mariadb, sqlite")
    parser.add_argument("--postgresql", default=os.environ.get("PENSTOCK_TEST_POSTGRESQL_URL"), metavar="URL")
    parser.add_argument("--mariadb", default=os.environ.get("PENSTOCK_TEST_MYSQL_URL"), metavar="URL")
    parser.add_argument("--limits", type=int, default=1_000)
    parser.add_argument("--waiters", type=int, default=10_000)
    parser.add_argument("--history", type=int, default=100_000, help="lines of it")
    parser.add_argument("--turns", type=int, default=30, help="how often each address is asked for")
    given = parser.parse_args()
    databases = Databases({name: url for name in ("postgresql", "mariadb") if (url := getattr(given, name))})
    failed = False
    for store in given.stores.split(","):
        try:
            failed |= _measured(databases, store, given)
        except (Skipped, KeyError) as error:
            print(f"{store}: skipped, {error}")
    return int(failed)


def _measured(databases: Databases, store: str, given: Any) -> bool:
    names = [f"pool-{number:04d}" for number in range(given.limits - 1)]
    with databases.store(store, dict.fromkeys([SHARED, *names], 1)) as url:
        fill(url, names, given.waiters, given.history)
        analyze(url)
        with _page(url) as (client, process):
            begun = _processor_seconds(process)
            times = _times(client, given.turns)
            spent = (_processor_seconds(process) - begun) / ((given.turns + 1) * len(ADDRESSES))
    print(f"\n{store}: {given.limits} limits, {given.waiters} waiters, {given.history} lines of history")
    print("| address | median | p95 | bytes |\n| --- | --- | --- | --- |")
    failed = False
    for what, (taken, size) in times.items():
        print(f"| {what} | {median(taken) * 1000:.0f} ms | {percentile(taken, 95) * 1000:.0f} ms | {size} |")
        failed |= not size
    every = [one for taken, _ in times.values() for one in taken]
    print(f"| all of them | {median(every) * 1000:.0f} ms | {percentile(every, 95) * 1000:.0f} ms | |")
    load = ", ".join(f"{figure:.0f}" for figure in os.getloadavg())
    print(f"the page's own processor time: {spent * 1000:.0f} ms an answer; load of the machine: {load}")
    return failed


def _processor_seconds(process: int) -> float:
    """What a process has used; what the machine's other work does not change."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fill(url: str, names: list[str], waiters: int, lines: int) -> None:
    """Each pool is held, and waited for: one waiter of each comes through the front door, the rest are its copies."""
    with penstock.connect(url, settings=PATIENT) as engine:
        engine.request(engine.claim(SHARED, *names, run_id="holder", op_id="all"), ticket=True).step()
        for number, name in enumerate(names):
            tags = {"team": f"number-{number % 10}", "owner": "somebody"}
            claim = engine.claim(SHARED, name, run_id=f"run-{number}-0", op_id="load", tags=tags)
            engine.request(claim, ticket=True).step()
        version = engine.configuration(fresh=True)[0]
        now = engine.store.snapshot_time()
    database = create_engine(url)
    each = waiters // 2 // len(names)
    with database.begin() as connection:
        claims = connection.execute(select(t.claim).where(t.claim.c.state == "waiting")).mappings().all()
        rows: dict[str, list[Any]] = {}
        for row in connection.execute(select(t.waiter)).mappings():
            rows.setdefault(row["claim_id"], []).append(row)
        first = min(claims, key=lambda row: int(row["rank"]))
        missing = waiters - each * len(names)
        copies = [(row, n) for row in claims for n in range(1, each)] + [
            (first, n) for n in range(each, each + missing)
        ]
        new_claims, new_waiters = [], []
        for row, n in copies:
            new, rank = str(uuid.uuid4()), row["rank"] + 50_000_000 + n
            run = re.sub(r"-0$", f"-{n}", row["run_id"])
            unique = f"{uuid.uuid4().hex}{uuid.uuid4().hex}"
            new_claims.append(
                {**row, "id": new, "rank": rank, "run_id": run, "live_holder": unique, "version": version}
            )
            new_waiters += [{**one, "claim_id": new, "rank": rank} for one in rows[row["id"]]]
        connection.execute(insert(t.claim), new_claims)
        connection.execute(insert(t.waiter), new_waiters)
        step = 24 * HOUR // lines
        history = []
        for number in range(lines):
            name, granted = names[number // 2 % len(names)], number % 2 == 0
            at = now - 24 * HOUR + number * step
            history.append(
                {
                    "at": at,
                    "event": "granted" if granted else "released",
                    "claim_id": str(uuid.uuid4()),
                    "host": "process",
                    "deployment": "process",
                    "label": f"process/process run-{number}",
                    "slots": {f"pool:{SHARED}": 1, f"pool:{name}": 1},
                    "waited": 60_000_000 if granted else None,
                    "held": None if granted else step,
                    "detail": None,
                }
            )
        for start in range(0, len(history), 10_000):
            connection.execute(insert(t.history), history[start : start + 10_000])
    database.dispose()


@contextmanager
def _page(url: str) -> Iterator[tuple[httpx.Client, int]]:
    command = [sys.executable, "-m", "penstock", "--store", url, "ui", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        try:
            with httpx.Client(base_url=address, timeout=60) as client:
                begun = time.monotonic()
                while not client.get(f"/api/limit/past?key=pool:{SHARED}").json()["complete"]:
                    time.sleep(0.1)
                print(f"the history was read {time.monotonic() - begun:.1f} s after the first look")
                yield client, server.pid
        finally:
            server.terminate()
            server.wait()


def _times(client: httpx.Client, turns: int) -> dict[str, tuple[list[float], int]]:
    """In turns, so that a slow moment of the machine meets all; the first turn is not counted."""
    times: dict[str, list[float]] = {what: [] for what in ADDRESSES}
    sizes: dict[str, int] = {}
    for turn in range(turns + 1):
        for what, address in ADDRESSES.items():
            begun = time.perf_counter()
            answer = client.get(address)
            taken = time.perf_counter() - begun
            answer.raise_for_status()
            sizes[what] = len(answer.content)
            if turn:
                times[what].append(taken)
    return {what: (times[what], sizes[what]) for what in ADDRESSES}


if __name__ == "__main__":
    sys.exit(main())
