"""What the people who run an Airflow use, on a real one whose store is named by an Airflow connection alone.

The examples that ship run on it: in task processes, callbacks of the dag-processor and the triggerer the connection is
asked for as a task may, in the API server and on the command line as Airflow's own parts do.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from penstock import changes, connect
from penstock.config import Concurrency
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.sql import SqlStore
from servers import fresh_database
from sqlalchemy.engine import URL, make_url

EXAMPLES = Path(str(importlib.resources.files("penstock_airflow").joinpath("example_dags")))
DAG_IDS = sorted(path.stem for path in EXAMPLES.glob("penstock_*.py"))
SECRET = "open-sesame-7"  # PostgreSQL does not ask for it here; nobody may be told it all the same
CONN_ID, LINK = "limits", "Penstock: who holds the slot"
ELSEWHERE = "https://prefect.example/runs/7"
LIMITS = {
    "pools": {"default_limit": 1, "limits": {"database": {"limit": 2, "description": "the warehouse"}, "api": 1}},
    "runs": {"max_concurrent_runs": 15},
}

needs_commands = pytest.mark.skipif(
    version("apache-airflow-core") < "3.2", reason="Airflow takes commands of providers from 3.2 on"
)


@pytest.fixture(scope="module")
def store(postgresql_url: str) -> Iterator[URL]:
    with fresh_database(postgresql_url) as url:
        store = SqlStore(url)
        store.upgrade()
        store.close()
        yield make_url(url).set(drivername="postgresql", password=SECRET)


@pytest.fixture(scope="module")
def engine(store: URL) -> Iterator[Engine]:
    with connect(store.render_as_string(hide_password=False)) as engine:
        changes.apply(engine, Concurrency.from_document(LIMITS), expected_version=0)
        yield engine


@pytest.fixture(scope="module")
def started(engine: Engine, store: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowHost]:
    environment = {
        "AIRFLOW__PENSTOCK__CONN_ID": CONN_ID,
        "AIRFLOW__PENSTOCK__SHORT_BLOCK_SECONDS": "1",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "PENSTOCK_STORE_URL": store.render_as_string(hide_password=False),  # for the example with a script
    }
    home = tmp_path_factory.mktemp("airflow")
    bin_folder = Path(sys.executable).parent
    with AirflowHost(
        bin_folder, home, EXAMPLES, store_url=None, deployment="operated", environment=environment
    ) as host:
        host.start(DAG_IDS)
        host._request("POST", "/api/v2/connections", form(store))
        host.create_pool("database", 16)
        yield host


@pytest.fixture
def host(started: AirflowHost, request: pytest.FixtureRequest) -> Iterator[AirflowHost]:
    failures = request.session.testsfailed
    yield started
    if request.session.testsfailed > failures:
        print(started.logs())


def form(store: URL, **other: Any) -> dict[str, Any]:
    """The connection as the form in the browser sends it."""
    fields = {"host": store.host, "port": store.port, "login": store.username, "password": SECRET}
    extra = {"backend": "postgresql", "options": "connect_timeout=5"}
    named = {"connection_id": CONN_ID, "conn_type": "penstock", "schema": store.database, "extra": json.dumps(extra)}
    return fields | named | other


def wait_until_empty(host: AirflowHost, engine: Engine) -> None:
    def nothing_left() -> bool:
        status = engine.status()
        return not status["leases"] and not status["waiters"]

    host.processes.wait_for("every slot is free", nothing_left, seconds=60)


def test_the_form_is_there(host: AirflowHost) -> None:
    types = {one["connection_type"]: one for one in host._request("GET", "/ui/connections/hook_meta")}  # type: ignore[index]
    ours = types["penstock"]
    assert ours["hook_name"] == "Penstock"
    assert ours["standard_fields"]["url_schema"]["title"] == "Database"
    assert ours["extra_fields"].keys() == {"backend", "options"}
    assert ours["extra_fields"]["backend"]["schema"]["enum"] == ["postgresql", "mysql", "sqlite"]


def test_the_connections_test_really_connects(host: AirflowHost, store: URL, postgresql_url: str) -> None:
    def tested(**other: Any) -> tuple[bool, str]:
        body = form(store, connection_id="tried", **other)
        answer = host._request("POST", "/api/v2/connections/test", body)
        return answer["status"], answer["message"]

    good, message = tested()
    assert good, message
    assert "PostgreSQL" in message
    with fresh_database(postgresql_url) as url:
        good, message = tested(schema=make_url(url).database)
        assert not good
        assert "schema none, this version works with" in message
        assert "`penstock db upgrade`" in message
    for other in ({"schema": "nobodys"}, {"port": 1}, {"host": ""}, {"extra": '{"backend": "oracle"}'}):
        good, message = tested(**other)
        assert not good, other
        assert message
        assert SECRET not in message


def test_the_examples_run(host: AirflowHost, engine: Engine) -> None:
    for dag_id in DAG_IDS:
        host.trigger(dag_id, "example")
    for dag_id in DAG_IDS:
        host.wait_for_runs(dag_id, ["example"], seconds=180)
    tasks = [task for dag_id in DAG_IDS for task in host.task_instances(dag_id, "example")]
    assert Counter(task["state"] for task in tasks) == {"success": len(tasks)}
    assert "loading under one" in host.task_log("penstock_example_script", "example", "nightly")
    wait_until_empty(host, engine)  # the callbacks in the dag-processor found the store, too


def test_a_task_that_waits_links_to_who_holds_its_slot(host: AirflowHost, engine: Engine) -> None:
    """It waits in the triggerer, which asks for the connection as well."""
    dag_id, run_id, task_id = "penstock_example_skip", "waits", "clean"

    def waits() -> bool:
        waiters = [(one["run_id"], one["op_id"]) for one in engine.status()["waiters"]]
        return (f"{dag_id}/{run_id}", task_id) in waiters

    def state() -> str:
        return next(one["state"] for one in host.task_instances(dag_id, run_id) if one["task_id"] == task_id)

    def link() -> str | None:
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        found: str | None = host._request("GET", path)["extra_links"][LINK]
        return found

    held = engine.acquire(replace(engine.claim("database:2", op_id="report"), url=ELSEWHERE))
    try:
        host.trigger(dag_id, run_id)
        host.processes.wait_for("it waits", waits, seconds=60)
        host.processes.wait_for("it is deferred", lambda: state() == "deferred", seconds=60)
        host.processes.wait_for("it has the link", lambda: link() == ELSEWHERE, seconds=30)
    finally:
        held.release()
    host.wait_for_runs(dag_id, [run_id], seconds=120)
    assert "database: 2 of 2 held by process/process report" in host.task_log(dag_id, run_id, task_id)
    wait_until_empty(host, engine)


@needs_commands
def test_the_command_line_knows_the_store_and_the_parts(host: AirflowHost) -> None:
    assert json.loads(host.command("penstock", "pools", "get", "database", "--json"))["capacity"] == 2
    told = json.loads(host.command("penstock", "doctor", "--json", seconds=120))
    parts = {part["part"]: (part["state"], part["detail"]) for part in told["parts"]}
    assert told["ok"], parts
    names = ("policy", "task runner", "plugin", "provider", "connection type", "trigger", "settings")
    names += ("installation", "triggerer")
    assert {parts[f"airflow {name}"][0] for name in names} == {"ok"}
    assert parts["airflow triggerer"][1].startswith("1 running, ")
    assert " of 1000 places taken; 0 tasks wait for slots there" in parts["airflow triggerer"][1]
    assert parts["airflow installation"][1] == f"told from others by its URL: {host.url}"
    settings = "deployment operated, the store from the connection limits, enforcement enforce"
    assert parts["airflow settings"][1] == settings
    assert "(from [penstock] of Airflow)" in parts["store"][1]


def test_pools_go_both_ways(host: AirflowHost, engine: Engine, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.json", tmp_path / "ours.json"

    def penstock(*arguments: object) -> str:
        command = [Path(sys.executable).with_name("penstock"), *map(str, arguments)]
        return host.processes.run("penstock", command, seconds=60)

    host.create_pool("reports", 5)
    host.command("pools", "export", str(theirs))
    assert "imported as version" in penstock("import", "airflow-pools", theirs, "--yes")
    limits = engine.configuration(fresh=True)[1].pools.limits
    assert {name: limits[name].limit for name in ("reports", "database", "api")} == {
        "reports": 5,
        "database": 16,  # as wide as Airflow's own
        "api": 1,
    }
    assert "default_pool" not in limits
    penstock("export", "airflow-pools", "-o", ours)
    host.command("pools", "import", str(ours))
    pools = {pool["name"]: pool for pool in host._all("/api/v2/pools", "pools")}
    assert {name: pools[name]["slots"] for name in ("api", "database", "reports", "default_pool")} == {
        "api": -1,
        "database": -1,
        "reports": -1,
        "default_pool": 128,
    }
    host.command("pools", "export", str(theirs))
    assert penstock("import", "airflow-pools", theirs, "--yes").endswith("nothing to change\n")


def test_nobody_was_told_the_password(host: AirflowHost) -> None:
    files = list(host.home.rglob("*.log"))
    files += [path for path in (host.home / "logs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET in path.read_text(errors="replace")] == []
