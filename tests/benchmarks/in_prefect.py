"""What limits cost inside Prefect: `python tests/benchmarks/in_prefect.py`, with a Python that has Prefect.

Ours beside Prefect's own, global limits (`concurrency()`) and tag limits, and beside no limit at all: many short tasks
of one flow over one limit (PrefectHQ/prefect #23183), the same from many processes, and a task that does nothing.
A server is started for each, with its database and the store on the PostgreSQL given.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # run as a file, this is no part of the package yet

from intervals import most_at_once  # noqa: E402
from penstock.demo.prefect_host import PrefectHost  # noqa: E402
from sqlalchemy.engine import make_url  # noqa: E402

from benchmarks.databases import Databases  # noqa: E402

SCRIPT = Path(__file__).parent / "flows" / "contended.py"
LIMITERS = ("bare", "penstock", "concurrency", "tag")
_LIMITS = """
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    client.upsert_global_concurrency_limit_by_name("benchmark", {limit})
    client.create_concurrency_limit(tag="benchmark", concurrency_limit={limit})
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print a line for each figure."""
    options = _parser().parse_args(arguments)
    databases = Databases({"postgresql": options.postgresql})
    bounds = {"seconds": options.seconds, "limiters": options.limiters}
    if "flow" in options.only:
        contended(databases, "one flow", tasks=options.tasks, processes=1, limit=options.limit, work=0.12, **bounds)
    if "processes" in options.only:
        contended(databases, "10 processes", tasks=5, processes=10, limit=5, work=0.12, **bounds)
    if "no-op" in options.only:
        no_op(databases, options.turns, **bounds)
    return 0


def contended(
    databases: Databases,
    what: str,
    *,
    tasks: int,
    processes: int,
    limit: int,
    work: float,
    seconds: float,
    limiters: Sequence[str],
) -> None:
    """How long it takes until the last slot is free, over the time in which all slots are always in use."""
    count = tasks * processes
    ideal = work * -(-count // limit)
    print(f"{what}: {count} tasks of {work:g} s, limit {limit}: {ideal:.2f} s if slots never idled")
    for limiter in limiters:
        with _host(databases, limit, tasks, work) as (host, folder):
            took = _play(host, folder, limiter, "at_once", processes, seconds)
            inside = _passed(folder)
            most = most_at_once(inside)
            end = f"{took:.1f} s, {took / ideal:.1f} times that" if took is not None else f"not done in {seconds:g} s"
            span = max(end for _, end in inside) - min(begin for begin, _ in inside) if inside else 0.0
            print(
                f"{what}, {limiter}: {end}; {span:.1f} s from the first slot to the last; "
                f"{len(inside)} passed, at most {most} at once",
                flush=True,
            )


def no_op(databases: Databases, turns: int, *, seconds: float, limiters: Sequence[str]) -> None:
    """What a task that does nothing takes, one after the other, with room for all."""
    for limiter in limiters:
        with _host(databases, 1000, turns, 0.0) as (host, folder):
            _play(host, folder, limiter, "one_by_one", 1, seconds)
            begins = [begin for begin, _ in _passed(folder)]
            gaps = sorted(after - before for before, after in itertools.pairwise(begins))
            print(f"no-op, {limiter}: {gaps[len(gaps) // 2] * 1e3:.1f} ms a task, median of {len(gaps)}", flush=True)


def _play(host: PrefectHost, folder: Path, limiter: str, case: str, processes: int, seconds: float) -> float | None:
    """Seconds until all flow processes have ended their work; None when they had to be ended."""
    names = [f"{limiter}-{number}" for number in range(processes)]
    children = [host.run_flow(name, SCRIPT, limiter, case, str(folder), name) for name in names]
    host.wait_for("all are loaded", lambda: len(list(folder.glob("ready-*"))) == processes, seconds=300)
    began = time.monotonic()
    (folder / "go").touch()
    try:
        for child in children:
            if child.wait(max(0.0, began + seconds - time.monotonic())):
                raise SystemExit(host.logs())
    except subprocess.TimeoutExpired:
        return None
    return max(end for _, end in _passed(folder)) - began


def _passed(folder: Path) -> list[tuple[float, float]]:
    path = folder / "passed"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(begin), float(end)) for begin, end in map(str.split, lines)]


@contextmanager
def _host(databases: Databases, limit: int, tasks: int, work: float) -> Iterator[tuple[PrefectHost, Path]]:
    with (
        databases.empty("postgresql") as metadata,
        databases.store("postgresql", {"benchmark": limit}) as store_url,
        tempfile.TemporaryDirectory(prefix="penstock-benchmark-") as folder,
    ):
        url = make_url(metadata).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
        settings = {
            "PREFECT_API_DATABASE_CONNECTION_URL": url,
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "BENCHMARK_TASKS": str(tasks),
            "BENCHMARK_SECONDS": str(work),
        }
        home = Path(folder) / "prefect"
        with PrefectHost(Path(sys.executable).parent, home, store_url, "benchmark", settings=settings) as host:
            host.start(seconds=300)
            host.run_python("-c", _LIMITS.format(limit=limit))
            yield host, Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/in_prefect.py", description=__doc__)
    cases = ("flow", "processes", "no-op")
    parser.add_argument("--only", nargs="+", choices=cases, default=list(cases), help="default: all")
    parser.add_argument("--limiters", nargs="+", choices=LIMITERS, default=list(LIMITERS), help="default: all")
    parser.add_argument("--postgresql", default="postgresql://postgres@127.0.0.1:5432/postgres", metavar="URL")
    parser.add_argument("--tasks", type=int, default=778, help="of the one flow (%(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="of the one flow (%(default)s)")
    parser.add_argument("--turns", type=int, default=100, help="tasks that do nothing (%(default)s)")
    parser.add_argument("--seconds", type=float, default=900.0, help="how long each may take at most (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
