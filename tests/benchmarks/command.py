"""The command line: which cases, where, for how long, and what is written."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import beside, cases, growth, imports, plots, report
from benchmarks.beside import made_environment
from benchmarks.cases import Run
from benchmarks.crew import ClientFailed
from benchmarks.databases import Databases, Skipped
from benchmarks.report import Bar, Row

SERVERS = {
    "postgresql": "postgresql://postgres@127.0.0.1:5432/postgres",
    "mariadb": "mysql://root@127.0.0.1:3306/mysql",
}
STORES = (*SERVERS, "sqlite")
CONSTRAINTS = Path(__file__).parents[2] / "core" / "penstock" / "demo" / "constraints-prefect.txt"
# The newest Prefect of all does not start with the newest of all that it needs; ours is known to.
PEERS = {"dagster": ("dagster", "dagster-postgres"), "prefect": ("-c", str(CONSTRAINTS), "prefect", "asyncpg")}
CLIENTS, QUICK_CLIENTS = (1, 2, 4, 8, 16, 32), 16
Case = Callable[[Run], Row] | Callable[[Run], list[Row]]

ROOM_BARS = {1: 0.6, 8: 0.5, 32: 0.5}
CASES: dict[str, tuple[str, Case]] = {
    **{
        f"room-{clients}": (
            "postgresql",
            cases.room(
                "postgresql",
                clients,
                Bar(ROOM_BARS[clients], "SA") if clients in ROOM_BARS else None,
                Bar(0.5, "raw") if clients in ROOM_BARS else None,
            ),
        )
        for clients in CLIENTS
    },
    "three-limits": ("postgresql", cases.room("postgresql", 8, Bar(0.35, "SA"), Bar(0.4, "raw"), pools=3)),
    "contended": ("postgresql", cases.contended(32, Bar(0.4, "SA"), Bar(1.0, "SA"))),
    "hand-over": ("postgresql", cases.hand_over),
    "mariadb": ("mariadb", cases.room("mariadb", 8, Bar(0.3, "SA"), Bar(0.5, "SA"))),
    "sqlite": ("sqlite", cases.sqlite_processes(8, Bar(0.4, "raw"), Bar(0.7, "raw"))),
    "growth-limits": ("postgresql", growth.limits),
    "growth-waiters-elsewhere": ("postgresql", growth.waiters_elsewhere),
    "growth-waiters-here": ("postgresql", growth.waiters_here),
    "advisory": ("postgresql", beside.peer_case("advisory", "advisory_locks", None)),
    "dagster": ("postgresql", beside.peer_case("dagster", "dagster_slots", beside.FAR_AHEAD)),
    "prefect": ("postgresql", beside.peer_case("prefect", "prefect_limits", beside.FAR_AHEAD)),
    "import": ("", imports.import_time),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0 unless a case or a cycle failed, or a limit was passed: a missed bar is a figure, not an error."""
    options = _parser().parse_args(arguments)
    run = Run(
        databases=Databases({"postgresql": options.postgresql, "mariadb": options.mariadb}),
        turns=options.turns or (2 if options.quick else 5),
        seconds=options.seconds or (0.3 if options.quick else 2.0),
        growth_sizes=(10, 100) if options.quick else (10, 100, 1_000, 10_000),
        growth_cycles=20 if options.quick else 200,
        most_clients=QUICK_CLIENTS if options.quick else max(CLIENTS),
        peer_pythons=_peer_pythons(options),
    )
    rows, failed = [], False
    for name in _chosen(options):
        begun = time.monotonic()
        try:
            measured = CASES[name][1](run)
            new = measured if isinstance(measured, list) else [measured]
        except Skipped as reason:
            new = [report.skipped(name, str(reason))]
        except ClientFailed as error:
            failed = True
            new = [report.skipped(name, f"failed: {str(error).strip().splitlines()[-1]}")]
            print(error, file=sys.stderr)
        rows += new
        for row in new:
            summary = "  ".join(part for part in (row.ours, row.ratio, row.note, *sorted(set(row.errors))) if part)
            print(f"{row.case}: {summary} ({time.monotonic() - begun:.0f} s)", file=sys.stderr)
    heading = _heading(run, options.stores)
    print(f"\n{heading}\n\n{report.text_table(rows)}")
    if options.output:
        _write(options.output, heading, run, rows)
    return int(failed or any(row.violations or row.errors for row in rows))


def _chosen(options: argparse.Namespace) -> list[str]:
    """The names of the cases to run. `--quick` leaves out what is long and what has no bar, unless it is named."""
    only: list[str] = options.only
    if unknown := [wanted for wanted in only if not any(_named(case, wanted) for case in CASES)]:
        sys.exit(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    few = {f"room-{clients}" for clients in ROOM_BARS if clients <= QUICK_CLIENTS}
    long = {*PEERS, "advisory", *(f"room-{clients}" for clients in CLIENTS)} - few
    left_out = long if options.quick and not only else set()
    return [
        name
        for name, (store, _) in CASES.items()
        if (not store or store in options.stores)
        and (not only or any(_named(name, wanted) for wanted in only))
        and name not in left_out
    ]


def _named(case: str, wanted: str) -> bool:
    return case == wanted or case.startswith(f"{wanted}-")


def _peer_pythons(options: argparse.Namespace) -> dict[str, str]:
    pythons = {"advisory": sys.executable}
    for peer, requirements in PEERS.items():
        if given := getattr(options, f"{peer}_python"):
            pythons[peer] = given
        elif getattr(options, f"with_{peer}"):
            pythons[peer] = made_environment(options.environments, peer, requirements)
    return pythons


def _heading(run: Run, stores: Sequence[str]) -> str:
    versions = [f"Penstock {version('penstock')}", f"Python {platform.python_version()}"]
    versions += [f"SQLAlchemy {version('sqlalchemy')}"]
    for store in stores:
        try:
            versions.append(run.databases.version(store))
        except Skipped:
            continue
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    return f"{when}, {machine}, {', '.join(versions)}; {run.turns} turns of {run.seconds:g} s"


def _write(folder: Path, heading: str, run: Run, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(f"{heading}\n\n{report.markdown_table(rows)}\n")
    (folder / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    try:
        plots.write(folder, run)
    except ImportError as error:
        print(f"no plots: {error}; uv pip install --group benchmarks", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="CI size: a minute at most, nothing beside us")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help=f"cases, or the first word of several: {', '.join(CASES)}"
    )
    parser.add_argument(
        "--stores", type=lambda text: text.split(","), default=list(STORES), help="default: all of them"
    )
    parser.add_argument("--output", type=Path, help="a folder for results.md, results.json and the plots")
    parser.add_argument("--turns", type=int, help="how often floor and ours alternate (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="how long a turn is (2; quick: 0.3)")
    parser.add_argument("--postgresql", default=SERVERS["postgresql"], metavar="URL", help="default: %(default)s")
    parser.add_argument("--mariadb", default=SERVERS["mariadb"], metavar="URL", help="default: %(default)s")
    for peer, requirements in PEERS.items():
        parser.add_argument(f"--{peer}-python", metavar="PATH", help=f"a Python that has {' and '.join(requirements)}")
        parser.add_argument(f"--with-{peer}", action="store_true", help="make that environment, with pip")
    parser.add_argument(
        "--environments", type=Path, default=Path(".venv-benchmarks"), help="where; default: %(default)s"
    )
    return parser
