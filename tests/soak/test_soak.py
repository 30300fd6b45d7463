"""A real Airflow, a real Prefect and commands on one PostgreSQL store, with faults all the while, judged from outside.

5 minutes; `PENSTOCK_TEST_SOAK=all`: 30; a number: as many minutes. `python tests/soak` puts its figures on
core/docs/soak.md.
"""

from __future__ import annotations

import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import penstock
import pytest
from configuring import configure
from faults.sampling import sampled
from own_servers import OwnPostgresql
from penstock.demo.airflow_host import AirflowHost
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.store.contract import Event
from penstock.store.sql import SqlStore
from servers import fresh_database

from soak import faulting, judging, load
from soak.faulting import Faults
from soak.load import AirflowFeed, CommandFeed, Feed, PrefectFeed
from soak.record import FaultSeen, HostSeen, Soak, minutes
from soak.record import tables as markdown
from soak.witness import Witness

MINUTES = minutes()
SECONDS = 60 * MINUTES
DRAIN_SECONDS = 75.0
"""So long before its end nothing new is begun, and nobody killed any more."""
LATE_SECONDS = 240.0
"""So much longer may it take until the last is over, on a busy machine."""
PAUSE_SECONDS = 10.0
"""Between two faults."""
RESTARTS = ("fast", "immediate", "kill -9") if MINUTES >= 20 else ("fast",)
TTL_SECONDS = "10"
HOLDERS = Path(__file__).parent / "holders"
CAPACITIES = {
    "pool:warehouse": 3,
    "pool:api": 2,
    "pool:licence": 1,
    "runs": 3,
    # Together more than all runs: each of the two limits is full at times.
    **{f"run_tag:customer=*:{customer}": 2 for customer in load.CUSTOMERS},
}
BLOCK: dict[str, Any] = {
    "pools": {"limits": {"warehouse": 3, "api": 2, "licence": 1}},
    "runs": {
        "max_concurrent_runs": 3,
        "tag_concurrency_limits": [{"key": "customer", "value": {"applyLimitPerUniqueValue": True}, "limit": 2}],
    },
}
AIRFLOW = {
    "AIRFLOW__PENSTOCK__RUN_TAG_KEYS": "customer",
    "AIRFLOW__PENSTOCK__SHORT_BLOCK_SECONDS": "1",
    "AIRFLOW__PENSTOCK__SESSION_TTL_SECONDS": TTL_SECONDS,
    "AIRFLOW__PENSTOCK__WAITING_BY_POOL": "licence=block",
    # What is killed is noticed within seconds, not minutes.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}
PREFECT = {
    "PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS": TTL_SECONDS,
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}
LOST = re.compile(r".*(?:has lost its slots|slots are lost|the lease is lost|WITHOUT LIMITS).*")
"""What a living holder says when others may get its slots."""


@dataclass
class Stage:
    """All that takes part."""

    airflow: AirflowHost
    prefect: PrefectHost
    database: OwnPostgresql
    engine: Engine
    url: str
    witness: Witness
    ending: ExitStack
    folder: Path
    versions: dict[str, str]

    def logs(self) -> str:
        """Of both hosts, and of the commands."""
        commands = self.folder / "commands.log"
        text = commands.read_text(errors="replace")[-6000:] if commands.exists() else ""
        return f"{self.airflow.logs()}\n{self.prefect.logs()}\n--- commands\n{text}"

    def losses(self) -> list[str]:
        """The lines in which a living holder says that it has lost its lease."""
        found = []
        for folder, pattern in (
            (self.folder / "airflow", "**/*.log"),
            (self.folder / "prefect", "**/*.log"),
            (self.folder, "commands.log"),
        ):
            for path in folder.glob(pattern):
                found += LOST.findall(path.read_text(errors="replace"))
        return found


@pytest.fixture
def stage(bins: dict[str, Path], database: OwnPostgresql, postgresql_url: str, tmp_path: Path) -> Iterator[Stage]:
    """Both hosts, started; their own data is on another server than the store's."""
    holds = tmp_path / "holds"
    holds.touch()
    shared = {"SOAK_HOLDS": str(holds), "PYTHONPATH": str(HOLDERS)}
    with ExitStack() as stack:
        url = stack.enter_context(fresh_database(database.url, durable=True))
        store = SqlStore(url)
        store.upgrade()
        versions = {"the store": store.server()}
        store.close()
        engine = stack.enter_context(penstock.connect(url))
        configure(engine, **BLOCK)
        airflow_url, prefect_url = (stack.enter_context(fresh_database(postgresql_url)) for _ in range(2))
        airflow = AirflowHost(
            bins["airflow"],
            tmp_path / "airflow",
            HOLDERS / "dags",
            store_url=url,
            deployment="soak",
            metadata_url=airflow_url,
            environment=shared | AIRFLOW,
        )
        prefect = PrefectHost(
            bins["prefect"],
            tmp_path / "prefect",
            url,
            "soak",
            settings=shared | PREFECT,
            database_url=prefect_url.replace("+psycopg", "+asyncpg"),
        )
        for host in (airflow, prefect):
            stack.callback(host.stop)
        starts: list[Callable[[], Any]] = [
            lambda: airflow.start([load.DAG_ID], seconds=faulting.PATIENCE_SECONDS),
            lambda: start_prefect(prefect),
        ]
        with ThreadPoolExecutor(2) as side_by_side:
            for started in [side_by_side.submit(start) for start in starts]:
                started.result()
        for pool in BLOCK["pools"]["limits"]:
            airflow.create_pool(pool, 32)
        versions |= {
            "Airflow": version_of("apache-airflow", bins["airflow"]),
            "Prefect": version_of("prefect", bins["prefect"]),
            "Python": platform.python_version(),
        }
        witness = stack.enter_context(Witness(holds))
        yield Stage(airflow, prefect, database, engine, url, witness, stack, tmp_path, versions)


def start_prefect(prefect: PrefectHost) -> None:
    """The server, a work pool, and its workers."""
    prefect.start(seconds=faulting.PATIENCE_SECONDS)
    prefect.create_work_pool(load.WORK_POOL, "penstock-process")
    for name in faulting.WORKERS:
        prefect.start_worker(name, load.WORK_POOL, seconds=faulting.PATIENCE_SECONDS)


def version_of(name: str, bin_folder: Path) -> str:
    """Of a distribution in that environment."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run(
        [bin_folder / "python", "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@pytest.mark.timeout(SECONDS + LATE_SECONDS + 600)
def test_no_limit_is_passed_nothing_leaks_and_all_ends_well(stage: Stage, tables: list[str]) -> None:
    try:
        soak, wrong = played(stage)
    except BaseException:
        print(stage.logs())
        raise
    soak.keep()
    tables.append(markdown(soak))
    if any(wrong.values()):
        print(stage.logs())
    assert not any(wrong.values()), "\n".join(f"{what}: {one}" for what, found in wrong.items() for one in found)
    kinds = {fault.kind for fault in soak.faults}
    assert kinds == set(faulting.KINDS), "no soak: a fault never came"
    free = [one.key for one in soak.limits if one.most_held < one.capacity]
    assert not free, "no soak: these limits were never full"
    assert all(one.begun for one in soak.hosts)


def played(stage: Stage) -> tuple[Soak, dict[str, list[str]]]:
    """Play it: what was seen, and what must not be."""
    over = threading.Event()
    entrypoint = f"{HOLDERS / 'flows' / 'prefect_orders.py'}:{load.DEPLOYMENT}"
    deployment = stage.prefect.deploy(load.DEPLOYMENT, entrypoint, load.WORK_POOL)
    environment = {
        "SOAK_HOLDS": str(stage.folder / "holds"),
        "PENSTOCK_SESSION_TTL_SECONDS": TTL_SECONDS,
        "PENSTOCK_DEPLOYMENT": "soak",
    }
    commands = CommandFeed(over, stage.url, environment, stage.folder)
    stage.ending.callback(commands.stop)
    dag_runs, flow_runs = AirflowFeed(over, stage.airflow), PrefectFeed(over, stage.prefect, deployment, stage.witness)
    feeds: list[Feed] = [dag_runs, flow_runs, commands]
    feed_seconds = SECONDS - DRAIN_SECONDS
    doing = Faults(
        stage.witness,
        stage.airflow,
        stage.prefect,
        flow_runs,
        commands,
        stage.database,
        seconds=feed_seconds,
        pause_seconds=PAUSE_SECONDS,
        restarts=RESTARTS,
    )

    def raise_errors() -> None:
        for thread in (*feeds, doing):
            if thread.error is not None:
                raise thread.error

    at, began = time.time(), time.monotonic()
    with sampled(stage.engine, pause_seconds=0.2) as most_in_store:
        for thread in (*feeds, doing):
            thread.start()
        while time.monotonic() < began + feed_seconds or doing.is_alive():
            raise_errors()
            time.sleep(0.5)
        fed_until = time.monotonic()
        over.set()
        ended = load.all_over(feeds, DRAIN_SECONDS + LATE_SECONDS, raise_errors)
    finished = time.monotonic()
    units = [unit for feed in feeds for unit in feed.units]
    assert ended, f"not over: {[unit for unit in units if not unit.is_well]}"
    dag_runs.count_retries()
    left = judging.left_over(stage.url, seconds=60)
    wrong = {
        "violations": judging.violations(stage.witness.holds, CAPACITIES),
        "left over": left,
        "undone": judging.undone(units, stage.witness.holds),
        "losses": stage.losses(),
    }
    history = stage.engine.store.history()
    limits = judging.seen(stage.witness.holds, history, CAPACITIES, most_in_store, began, fed_until, finished)
    granted = [row for row in history if row.event is Event.GRANTED]
    hosts = [
        HostSeen(
            host=feed.host,
            what=what,
            begun=len(feed.units),
            well=sum(unit.is_well for unit in feed.units),
            retries=sum(unit.retries for unit in feed.units),
            leases=sum(row.host == host for row in granted),
            longest_wait_seconds=max((row.wait_seconds or 0.0 for row in granted if row.host == host), default=0.0),
        )
        for feed, host, what in (
            (dag_runs, "airflow", "DAG runs of 4 tasks"),
            (flow_runs, "prefect", "flow runs of 3 tasks and a block"),
            (commands, "process", "commands"),
        )
    ]
    soak = Soak(
        at=at,
        minutes=MINUTES,
        seconds=finished - began,
        fed_seconds=fed_until - began,
        versions=stage.versions,
        holds=len(stage.witness.holds),
        cut_short=sum(hold.ended is None for hold in stage.witness.holds),
        expired=sum(row.event is Event.EXPIRED for row in history),
        limits=tuple(limits),
        hosts=tuple(hosts),
        faults=tuple(
            FaultSeen(kind=one.kind, how=one.how, at=one.at - began, seconds=one.seconds) for one in doing.done
        ),
        violations=len(wrong["violations"]),
        left_over=len(left),
        undone=len(wrong["undone"]),
        losses=len(wrong["losses"]),
    )
    return soak, wrong
