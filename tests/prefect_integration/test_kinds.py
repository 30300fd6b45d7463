"""Everything that can be limited, on a real server: each kind of function, each way to run it, each tag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from intervals import most_at_once, read_intervals
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.store.contract import Event
from prefect_api import ask
from prefect_runs import Configure, Run, held, succeed

POOLS = {"database": 2, "api": 2, "single": 1, "sub": 1, "late": {"limit": 1, "granularity": "run"}}


def granted(engine: Engine, run_name: str, run_id: str) -> dict[str, list[dict[str, int | None]]]:
    """What the flow runs of this name were granted, in order: by flow, by task, "slots", and "late" by the run."""
    found: dict[str, list[dict[str, int | None]]] = {}
    for row in engine.store.history():
        names = (row.label or "").split()[1:]
        if row.event is Event.GRANTED and any(name == run_id or name.endswith(f"/{run_name}") for name in names):
            name = "late" if names[-1] == run_id else names[-1].partition("/")[0]
            slots = {key.replace(f"prefect/prefect-test/{run_id}", "RUN"): count for key, count in row.slots.items()}
            found.setdefault(name if len(names) == 1 else name.partition("-")[0], []).append(slots)
    return found


def test_every_kind_is_limited_however_it_runs(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": POOLS}, ops={"max_concurrent": 1})
    succeed(host, run("everything", "everything", script="kinds"))
    assert most_at_once(read_intervals(intervals)["table"]) == 1
    assert held(engine) == {}
    run_id = next(row["id"] for row in host.flow_runs("everything") if row["parent_task_run_id"] is None)
    seen = granted(engine, "everything", run_id)
    op, of_table = {"pool:database": 1, "run_ops:RUN": 1}, {"run_op_tag:RUN:table": 1}
    assert seen["everything"] == [{"runs": 1}]
    assert seen["late"] == [{"pool:late": 1}]
    assert seen["subflow"] == seen["async-subflow"] == [{"pool:sub": 1}]
    assert seen["plain"] == [op | of_table] * 4
    assert seen["other"] == [op | of_table]
    assert seen["coroutine"] == [op] * 3
    assert seen["generator"] == seen["async_generator"] == seen["asset"] == seen["read"] == [op]
    assert seen["several"] == [op | of_table | {"pool:api": 2}, op | {"pool:api": 2}]
    assert seen["undecorated"] == [{"run_ops:RUN": 1}]
    assert seen["slots"] == [{"pool:sub": 1, "run_ops:RUN": 1}]


def test_tasks_in_a_process_pool_stand_under_their_run(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": POOLS})
    succeed(host, run("pooled", "pooled", script="kinds"), seconds=240)  # each process loads Prefect anew
    assert most_at_once(read_intervals(intervals)["process"]) == 1
    (flow_run,) = host.flow_runs("pooled")
    op = {"pool:database": 1, "run_ops:RUN": 1}
    assert granted(engine, "pooled", flow_run["id"]) == {
        "pooled": [{"runs": 1, "pool:single": 1}],
        "in_a_process": [op] * 3,
    }


def test_a_task_worker_is_limited(host: PrefectHost, run: Run, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": POOLS})
    # The same server by another URL: it is not taken for a second one of the same name.
    other_url = {"PREFECT_API_URL": host.api_url.replace("127.0.0.1", "localhost")}
    worker = run("worker", "worker", other_url, script="kinds")
    try:
        succeed(host, run("delaying", "delaying", script="kinds"), seconds=150)
    finally:
        worker.terminate()
        worker.wait(30)
    claims = [
        row.slots for row in engine.store.history() if row.event is Event.GRANTED and "delayed" in (row.label or "")
    ]
    assert claims == [{"pool:database": 1}]


def test_a_served_flow_has_the_tags_of_its_deployment(
    host: PrefectHost, run: Run, engine: Engine, configure: Configure
) -> None:
    keys = ("prefect/flow", "prefect/deployment", "team")
    rules: list[dict[str, Any]] = [
        {"key": key, "value": {"applyLimitPerUniqueValue": True}, "limit": 1} for key in keys
    ]
    configure(pools={"limits": POOLS}, runs={"tag_concurrency_limits": rules})
    server = run("served", "served", {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}, script="kinds")
    try:
        wanted = {"deployments": {"name": {"any_": ["served"]}}}  # other tests leave theirs on the server
        host.wait_for("the deployment", lambda: bool(ask(host, "/deployments/filter", wanted)), seconds=90)
        (deployment,) = ask(host, "/deployments/filter", wanted)
        flow_run = ask(host, f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"number": 4}})

        def completed() -> bool:
            state: str = ask(host, f"/flow_runs/{flow_run['id']}")["state_type"]
            return state == "COMPLETED"

        host.wait_for("the served run", completed, seconds=120)
    finally:
        server.terminate()
        server.wait(30)
    tags = {"run_tag:prefect%2Fflow=*:served", "run_tag:prefect%2Fdeployment=*:served", "run_tag:team=*:served"}
    (of_run,) = granted(engine, flow_run["name"], flow_run["id"])["served"]
    assert set(of_run) == tags | {"runs"}


def test_a_second_server_under_the_same_name_is_refused(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    from penstock.store.contract import Deployment

    configure(pools={"limits": POOLS})
    engine.store.register(Deployment("prefect", "taken", "Prefect server of somebody else"))
    child = run("everything", "taken", {"PREFECT_INTEGRATIONS_PENSTOCK_DEPLOYMENT": "taken"}, script="kinds")
    assert host.wait_for_flows(child) != [0]
    said = host.flow_log("taken")
    assert "prefect/taken is Prefect server of somebody else already" in said
    assert "PENSTOCK_DEPLOYMENT" in said
    assert read_intervals(intervals) == {}


@pytest.mark.parametrize("enforcement", ["off", "observe"])
def test_an_installation_that_does_not_enforce_waits_for_nothing(
    host: PrefectHost, run: Run, engine: Engine, configure: Configure, enforcement: str
) -> None:
    configure(pools={"limits": {"single": 0, "database": 0}})
    child = run("shown", enforcement, {"PREFECT_INTEGRATIONS_PENSTOCK_ENFORCEMENT": enforcement}, script="waits")
    succeed(host, child)
    said = host.flow_log(enforcement)
    assert ("enforcement is off" if enforcement == "off" else "Would have waited for pool:single") in said
    assert json.dumps(held(engine)) == "{}"
