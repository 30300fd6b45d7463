"""What Penstock costs inside Airflow: `python tests/benchmarks/in_airflow.py`, with a Python that has Airflow.

Three cases: the policy at each parse, the first claim in a task's process, and a triggerer in which many tasks wait.
The last two start a whole Airflow, with its metadata and the store on the PostgreSQL given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # run as a file, this is no part of the package yet

from penstock import connect  # noqa: E402
from penstock.demo.airflow_host import AirflowHost  # noqa: E402
from sqlalchemy.engine import make_url  # noqa: E402

from benchmarks.databases import Databases  # noqa: E402

DAGS = Path(__file__).with_name("dags")
CASES = ("policy", "first-claim", "triggerer")
LICENCE = "licence"
_POLICY = """
import time
from airflow.providers.standard.operators.empty import EmptyOperator
from penstock_airflow import policy
tasks = [EmptyOperator(task_id=f"task_{{n}}") for n in range({tasks} + 1)]
policy.task_policy(tasks.pop())  # what is read once in a process
began = time.perf_counter()
for task in tasks:
    policy.task_policy(task)
print((time.perf_counter() - began) / len(tasks) * 1e6)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print a line for each figure."""
    options = _parser().parse_args(arguments)
    databases = Databases({"postgresql": options.postgresql})
    if "policy" in options.only:
        policy(options.tasks)
    if "first-claim" in options.only:
        first_claim(databases, options.turns)
    if "triggerer" in options.only:
        triggerer(databases, options.waiting, options.resumed)
    return 0


def policy(tasks: int) -> None:
    """Microseconds for each task, in a process that has a store URL and in one that has none."""
    for name, url in (("with a store", "postgresql://nobody@127.0.0.1:1/none"), ("inactive", None)):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK", "AIRFLOW"))}
        if url:
            environment["AIRFLOW__PENSTOCK__STORE_URL"] = url
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, "-c", _POLICY.format(tasks=tasks)]
            environment["AIRFLOW_HOME"] = home
            shown = [
                float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.split()[-1])
                for _ in range(3)
            ]
        print(f"policy, {name}: {median(shown):.1f} µs a task at each parse (median of 3, {tasks} tasks)")


def first_claim(databases: Databases, turns: int) -> None:
    """How long a task that does nothing takes, as Airflow says, without Penstock and with it; no limit is reached."""
    medians = {}
    for name in ("bare", "with Penstock"):
        with _host(databases, active=name != "bare", queue=1) as (host, _):
            runs = [f"turn_{turn}" for turn in range(turns)]
            for run in runs:
                host.trigger("sequence", run)
                host.wait_for_runs("sequence", [run], seconds=300)
            spent = [task["duration"] for run in runs for task in host.task_instances("sequence", run)]
            medians[name] = median(spent)
            print(f"first claim, {name}: {median(spent) * 1e3:.0f} ms a task, median of {len(spent)}")
    print(f"first claim: {(medians['with Penstock'] - medians['bare']) * 1e3:+.0f} ms over the bare task")


def triggerer(databases: Databases, waiting: int, resumed: int) -> None:
    """CPU and connections of a triggerer in which tasks wait, and how long after a release the next one runs."""
    with _host(databases, active=True, queue=waiting) as (host, store_url), connect(store_url) as engine:
        with engine.hold(LICENCE):
            host.trigger("queue", "one")

            def all_wait() -> bool:
                states = [task["state"] for task in host.task_instances("queue", "one")]
                return len(states) == waiting and set(states) == {"deferred"}

            began = time.monotonic()
            host.processes.wait_for("all wait in the triggerer", all_wait, seconds=3600)
            print(f"triggerer: {waiting} tasks deferred after {time.monotonic() - began:.0f} s")
            port = make_url(store_url).port or 5432
            pids = _tree(host.processes.pid("triggerer"))
            before, at = _cpu_seconds(pids), time.monotonic()
            time.sleep(30)
            share = (_cpu_seconds(pids) - before) / (time.monotonic() - at)
            print(f"triggerer, {waiting} waiting: {share * 100:.1f}% of one core, {_threads(pids)} threads")
            print(f"triggerer, {waiting} waiting: {_connections(pids, port)} connections to PostgreSQL")
        passed = Path(host.environment["PASSED_FOLDER"])
        host.processes.wait_for("some have passed", lambda: len(list(passed.iterdir())) >= resumed, seconds=900)
        intervals = sorted((json.loads(path.read_text()) for path in passed.iterdir()), key=lambda one: one["began"])
        delays = [after["began"] - before["ended"] for before, after in itertools.pairwise(intervals)]
        print(
            f"triggerer, {waiting} waiting: from one task's end to the next one's first line "
            f"{median(delays):.2f} s median, {max(delays):.2f} s at most, {len(delays)} times"
        )


@contextmanager
def _host(databases: Databases, *, active: bool, queue: int) -> Iterator[tuple[AirflowHost, str]]:
    with (
        databases.empty("postgresql") as metadata,
        databases.store("postgresql", {LICENCE: 1}) as store_url,
        tempfile.TemporaryDirectory(prefix="penstock-benchmark-") as folder,
    ):
        passed = Path(folder) / "passed"
        passed.mkdir()
        environment = {
            "AIRFLOW__PENSTOCK__SHORT_BLOCK_SECONDS": "0",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1000",
            "AIRFLOW__TRIGGERER__CAPACITY": "2000",
            "PASSED_FOLDER": str(passed),
            "QUEUE_LENGTH": str(queue),
        }
        with AirflowHost(
            Path(sys.executable).parent,
            Path(folder) / "airflow",
            DAGS,
            store_url=store_url if active else None,
            deployment="benchmark",
            metadata_url=str(make_url(metadata).set(drivername="postgresql+psycopg").render_as_string(False)),
            environment=environment,
        ) as host:
            host.start(["sequence", "queue"])
            host.create_pool(LICENCE, 1000)
            yield host, store_url


def _tree(pid: int) -> list[int]:
    """The process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _cpu_seconds(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _threads(pids: Sequence[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids)


def _connections(pids: Sequence[int], port: int) -> int:
    """Sockets of these processes whose other end is a PostgreSQL server's port."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(parts[9] in inodes and parts[2].endswith(f":{port:04X}") for parts in map(str.split, lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/in_airflow.py", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--postgresql", default="postgresql://postgres@127.0.0.1:5432/postgres", metavar="URL")
    parser.add_argument("--tasks", type=int, default=1000, help="for the policy (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="runs of 20 tasks for the first claim (%(default)s)")
    parser.add_argument("--waiting", type=int, default=500, help="tasks in the triggerer (%(default)s)")
    parser.add_argument("--resumed", type=int, default=20, help="how many of them are let through (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
