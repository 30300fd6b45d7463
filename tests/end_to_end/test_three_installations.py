"""An Airflow and two Prefect servers on one PostgreSQL store: one limit over all three, and each known by its name."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import penstock
import pytest
from intervals import most_at_once, read_intervals
from penstock import changes, demo
from penstock.config import Concurrency
from penstock.demo.airflow_host import AirflowHost
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from servers import fresh_database

DEMO = Path(demo.__file__).parent
DAG_ID = "penstock_demo"
LIMITS = {"pool:database": 2, "pool:api": 1, "runs": 2, "run_tag:team=analytics": 1}
BLOCK = {
    "pools": {"limits": {"database": 2, "api": 1}},
    "runs": {
        "max_concurrent_runs": 2,
        "tag_concurrency_limits": [{"key": "team", "value": "analytics", "limit": 1}],
    },
}
INSTALLATIONS = {"airflow/etl", "prefect/one", "prefect/two"}


@dataclass
class Three:
    """All of them, started, and what they share."""

    airflow: AirflowHost
    prefects: list[PrefectHost]
    engine: Engine
    url: str
    intervals: Path


@pytest.fixture
def three(bins: dict[str, Path], postgresql_url: str, tmp_path: Path) -> Iterator[Three]:
    intervals = tmp_path / "intervals"
    intervals.touch()
    shared = {"PENSTOCK_DEMO_INTERVALS": str(intervals)}
    settings = {"AIRFLOW__PENSTOCK__RUN_TAG_KEYS": "team"}
    with ExitStack() as stack:
        url = stack.enter_context(fresh_database(postgresql_url))
        upgrade = [sys.executable, "-m", "penstock", "--store", url, "db", "upgrade"]
        subprocess.run(upgrade, check=True, timeout=60)
        engine = stack.enter_context(penstock.connect(url))
        changes.apply(engine, Concurrency.model_validate(BLOCK), expected_version=0)
        airflow = AirflowHost(
            bins["airflow"],
            tmp_path / "airflow",
            DEMO / "dags",
            store_url=url,
            deployment="etl",
            environment=shared | settings,
        )
        prefects = [
            PrefectHost(bins["prefect"], tmp_path / name, url, name, settings=shared) for name in ("one", "two")
        ]
        starts: list[Callable[[], Any]] = [lambda: airflow.start([DAG_ID])]
        starts += [prefect.start for prefect in prefects]
        for host in (airflow, *prefects):
            stack.callback(host.stop)
        with ThreadPoolExecutor(3) as side_by_side:
            for started in [side_by_side.submit(start) for start in starts]:
                started.result()
        for pool in ("database", "api"):
            airflow.create_pool(pool, 32)
        yield Three(airflow, prefects, engine, url, intervals)


@pytest.mark.timeout(900)
def test_limits_hold_over_all_and_status_tells_them_apart(three: Three) -> None:
    seen: set[str] = set()
    most: Counter[str] = Counter()
    over = threading.Event()
    looker = threading.Thread(target=look, args=(three, over, seen, most))
    # Until all three have come, however long each takes. Not `api` too: Airflow would hold back its whole run then.
    with three.engine.hold("database:2"):
        three.airflow.trigger(DAG_ID, "first", {"team": "analytics"})
        script = DEMO / "flows" / "penstock_demo.py"
        flows = [
            (prefect, prefect.run_flow("first", script, f"first-{number}", "team:analytics"))
            for number, prefect in enumerate(three.prefects)
        ]
        looker.start()
        three.airflow.processes.wait_for("all three are there", lambda: seen == INSTALLATIONS, seconds=120)
    states = three.airflow.wait_for_runs(DAG_ID, ["first"], seconds=240)
    codes = [prefect.wait_for_flows(flow, seconds=240) for prefect, flow in flows]
    over.set()
    looker.join()

    assert set(states.values()) == {"success"}, three.airflow.logs(DAG_ID)
    assert codes == [[0], [0]], [prefect.logs() for prefect in three.prefects]
    for key, inside in read_intervals(three.intervals).items():
        assert len(inside) == 3 * (4 if key == "pool:database" else 2)
        assert most_at_once(inside) <= LIMITS[key]
    assert all(most[key] <= limit for key, limit in LIMITS.items()), most
    assert most["run_tag:team=analytics"] == 1
    granted = Counter((row.host, row.deployment) for row in three.engine.store.history() if row.event == "granted")
    assert {f"{host}/{deployment}" for host, deployment in granted} >= INSTALLATIONS

    def none_is_held() -> bool:
        return not any(row.held for row in three.engine.store.limit_rows())

    # Airflow calls the callbacks that end a run seconds after its last task.
    three.airflow.processes.wait_for("all slots are back", none_is_held, seconds=60)


def look(three: Three, over: threading.Event, seen: set[str], most: Counter[str]) -> None:
    """By `penstock status`: which installations hold or wait, and how much was ever held."""
    command = [sys.executable, "-m", "penstock", "--store", three.url, "status", "--json"]
    while not over.is_set():
        status = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        seen |= {f"{one['host']}/{one['deployment']}" for one in status["leases"] + status["waiters"]} & INSTALLATIONS
        for limit in status["limits"]:
            most[limit["key"]] = max(most[limit["key"]], limit["held"])
        over.wait(0.5)
