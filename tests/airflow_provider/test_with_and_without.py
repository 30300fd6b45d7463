"""A second real Airflow: first without a store's URL, then with wrong ones, then beside the first one on its store.

The example DAGs that ship with Airflow pass on it without Penstock and then under a limit on everything, with the same
states: a few of them, or with `PENSTOCK_TEST_EXAMPLE_DAGS=all` (and some 20 minutes) all that can.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import airflow_examples
import pytest
from airflow_examples import FILES, SELECTED, Examples
from airflow_recorded import forget_intervals, recorded
from airflow_tests_settings import DAGS, SETTINGS
from intervals import most_at_once
from penstock.demo.airflow_host import FINISHED, AirflowHost
from penstock.demo.processes import HostFailed, free_port
from penstock.engine import Engine
from penstock.queue import leases, waiters
from servers import fresh_database
from tables import table

pytestmark = [
    pytest.mark.parametrize("store_url", ["postgresql"], indirect=True),
    pytest.mark.timeout(7200 if airflow_examples.ALL else 300),
]
EACH = {"applyLimitPerUniqueValue": True}
LIMITS = {
    "pools": {"default_limit": 4, "limits": {"shared": 2}},
    "runs": {
        "max_concurrent_runs": 6,
        "tag_concurrency_limits": [{"key": "airflow/dag_id", "value": EACH, "limit": 8}],
    },
    "ops": {"max_concurrent": 3, "tag_concurrency_limits": [{"key": "airflow/operator", "value": EACH, "limit": 2}]},
}
WRONG = {
    "nobody listens": ("postgresql+psycopg://postgres@127.0.0.1:{port}/penstock", "Connection refused"),
    "no URL at all": ("not-a-url", "the store's URL cannot be read; write it as SQLAlchemy does"),
}
DAG_IDS = ["shared", *SELECTED]


@dataclass
class Story:
    """What was seen, phase by phase."""

    examples: dict[str, Examples] = field(default_factory=dict)
    at_once: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    took: list[tuple[str, str]] = field(default_factory=list)
    status: str = ""


@pytest.fixture(scope="module")
def second(
    started_host: AirflowHost, postgresql_url: str, intervals_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowHost]:
    """Not started yet, without a store."""
    dags = tmp_path_factory.mktemp("dags")
    for name in ("recording.py", "waiting.py"):
        shutil.copy(DAGS / name, dags)
    if not airflow_examples.ALL:  # all are loaded by Airflow itself
        package = importlib.util.find_spec("airflow.example_dags")
        assert package is not None
        for name in FILES:
            shutil.copy(Path(str(package.origin)).with_name(name), dags)
    environment = (
        SETTINGS
        | airflow_examples.SETTINGS
        | {
            "INTERVALS_FOLDER": str(intervals_folder),
            "AIRFLOW__CORE__PARALLELISM": "12",
            "AIRFLOW__PENSTOCK__POOLS": "default_pool,*",
        }
    )
    with (
        fresh_database(postgresql_url) as metadata_url,
        AirflowHost(
            Path(sys.executable).parent,
            tmp_path_factory.mktemp("second"),
            dags,
            store_url=None,
            deployment="second",
            metadata_url=metadata_url,
            environment=environment,
        ) as host,
    ):
        yield host


@pytest.fixture(scope="module")
def story(
    second: AirflowHost,
    started_host: AirflowHost,
    engine: Engine,
    store_url: str,
    intervals_folder: Path,
    limits: None,
    tables: list[str],
) -> Story:
    """Everything in a row, on one host: a start costs more than what is done on it."""
    story = Story()
    phases: dict[str, Callable[[], None]] = {
        "start": lambda: _start(second),
        "without a URL": lambda: _without_url(story, second, intervals_folder),
        "without once more": lambda: _without_once_more(story, second),
        "wrong URLs": lambda: _with_wrong_urls(story, second),
        "restart": lambda: second.restart(DAG_IDS, {"AIRFLOW__PENSTOCK__STORE_URL": store_url}, seconds=300),
        "with limits": lambda: _with_limits(story, second),
        "beside another": lambda: _beside_another(story, second, started_host, engine, intervals_folder),
        "another's name": lambda: _under_anothers_name(story, second),
    }
    try:
        for name, phase in phases.items():
            began = time.monotonic()
            phase()
            story.took.append((name, f"{time.monotonic() - began:.0f}"))
    except HostFailed as error:
        print(second.logs())
        raise HostFailed(str(error).splitlines()[0]) from None
    tables.append(table("A second Airflow", ("phase", "s"), story.took))
    heads = ("example DAG", "task instances", "states equal", "s without", "s under limits")
    tables.append(table("Airflow's examples", heads, airflow_examples.rows(*_without_and_with(story))))
    tables.append(table("Airflow and its store", ("what is wrong", "state of the task", "what it says"), story.rows))
    return story


def _start(second: AirflowHost) -> None:
    second.start(DAG_IDS, seconds=300)
    second.create_pool("shared", 16)


def _with_limits(story: Story, second: AirflowHost) -> None:
    story.examples["with"] = airflow_examples.run(second, "with", week=2)


def _without_url(story: Story, second: AirflowHost, folder: Path) -> None:
    the_end = folder / "the end"
    for run_id in ("one", "two"):
        second.trigger("shared", run_id, {"name": "unlimited", "seconds": 3600, "until": str(the_end)})
    second.processes.wait_for("both work", lambda: _at_work(folder, "unlimited") == 2, seconds=120)
    the_end.touch()
    story.examples["without"] = airflow_examples.run(second, "without")
    second.wait_for_runs("shared", ["one", "two"], seconds=60)
    story.logs["no URL"] = second.task_log("shared", "one", "work")
    story.at_once["no URL"] = _at_once(folder, "unlimited")
    story.rows.append(("no URL", "success", "Penstock is installed but inactive: …"))


def _without_once_more(story: Story, second: AirflowHost) -> None:
    """A DAG that ends now one way and now another says nothing of Penstock: it would be excluded."""
    if airflow_examples.ALL:
        story.examples["once more"] = airflow_examples.run(second, "once_more", week=1)


def _without_and_with(story: Story) -> tuple[Examples, Examples]:
    return story.examples["without"], story.examples["with"]


def _with_wrong_urls(story: Story, second: AirflowHost) -> None:
    for number, (name, (url, _)) in enumerate(WRONG.items()):
        story.logs[name] = _fails(
            second,
            f"wrong_{number}",
            {
                "AIRFLOW__PENSTOCK__STORE_URL": url.format(port=free_port()),
                "AIRFLOW__PENSTOCK__STORE_RETRY_SECONDS": "3",
            },
        )
        story.rows.append((f"wrong URL: {name}", "failed", _error(story.logs[name])))


def _beside_another(story: Story, second: AirflowHost, first: AirflowHost, engine: Engine, folder: Path) -> None:
    runs = [f"both_{number}" for number in range(4)]
    for run_id in runs:
        for host in (first, second):
            host.trigger("shared", run_id, {"name": "both", "seconds": 4})

    def both_ask() -> bool:
        snapshot = engine.snapshot()
        claims = [row.claim for row in (*leases(snapshot), *waiters(snapshot))]
        return {one.deployment for one in claims if (one.run_id or "").startswith("shared/")} == {"tests", "second"}

    second.processes.wait_for("both hold slots or wait for them", both_ask, seconds=60)
    penstock = Path(sys.executable).with_name("penstock")
    url = second.environment["AIRFLOW__PENSTOCK__STORE_URL"]
    story.status = second.processes.run("status", [penstock, "--store", url, "status"], seconds=30)
    for host in (first, second):
        host.wait_for_runs("shared", runs, seconds=120)
    story.at_once["both"] = _at_once(folder, "both")


def _under_anothers_name(story: Story, second: AirflowHost) -> None:
    story.logs["same name"] = _fails(second, "same_name", {"AIRFLOW__PENSTOCK__DEPLOYMENT": "tests"})
    story.rows.append(("the name of another installation", "failed", _error(story.logs["same name"])))


def _fails(second: AirflowHost, run_id: str, environment: dict[str, str]) -> str:
    """The log of a task that must fail in a scheduler with this environment."""
    second.processes.kill("scheduler")
    second.start_component("scheduler", environment)
    second.trigger("shared", run_id, {"name": run_id, "seconds": 1})
    second.wait_for_runs("shared", [run_id], seconds=90, expected="failed")
    return second.task_log("shared", run_id, "work")


def _at_work(folder: Path, name: str) -> int:
    return sum(one["name"] == name for one in recorded(folder))


def _at_once(folder: Path, name: str) -> int:
    most = most_at_once((one["began"], one["ended"]) for one in recorded(folder) if one["name"] == name)
    forget_intervals(folder)
    return most


def _error(log: str) -> str:
    """What a task failed with, from a log of JSON lines."""
    found = re.search(r'"exc_type":"(\w+)","exc_value":"((?:[^"\\]|\\.)*)"', log)
    return f"{found[1]}: {found[2]}" if found else "nothing"


def test_without_a_url_tasks_run_without_limits_and_say_so(story: Story) -> None:
    assert story.at_once["no URL"] == 2
    assert "Penstock is installed but inactive" in story.logs["no URL"]


@pytest.mark.parametrize("wrong", WRONG)
def test_with_a_wrong_url_tasks_fail_and_say_why(story: Story, wrong: str) -> None:
    assert WRONG[wrong][1] in _error(story.logs[wrong])
    assert "Done. Returned value" not in story.logs[wrong]


def test_the_examples_of_airflow_end_in_the_same_states_under_limits_on_everything(
    story: Story, engine: Engine
) -> None:
    without, under_limits = _without_and_with(story)
    assert under_limits.states == without.states
    for examples in story.examples.values():
        assert (examples.runs, examples.states) == (without.runs, without.states)
    assert without.runs.keys() == set(SELECTED)
    assert set(without.runs.values()) <= FINISHED
    granted = {
        (row.label or "").split()[1].split("/")[0] for row in engine.store.history() if "second" in (row.label or "")
    }
    assert granted & set(SELECTED) == under_limits.in_workers


def test_limits_hold_over_two_installations_and_status_tells_them_apart(story: Story) -> None:
    assert story.at_once["both"] == 2
    assert "airflow/tests" in story.status
    assert "airflow/second" in story.status


def test_a_second_installation_of_one_name_is_refused(story: Story) -> None:
    error = _error(story.logs["same name"])
    assert error.startswith("DeploymentConflict: airflow/tests is http://127.0.0.1:")
    assert "name one of the two otherwise" in error
    assert "Done. Returned value" not in story.logs["same name"]
