"""Flows on a real Prefect server, under limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from intervals import most_at_once, read_intervals
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from prefect_runs import Configure, Run, held, succeed

TTL_SECONDS = 6  # as the host's flow processes are given in conftest.py


def test_two_flows_share_a_pool(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"database": 2}})
    children = {name: run(flow, name) for flow, name in (("shared", "sync"), ("shared_async", "async"))}
    succeed(host, *children.values())
    inside = read_intervals(intervals)["database"]
    assert len(inside) == 6 + 4
    assert most_at_once(inside) == 2
    assert held(engine) == {}
    for name in children:
        (flow_run,) = host.flow_runs(name)
        assert flow_run["state_type"] == "COMPLETED"
        assert [task["run_count"] for task in host.wait_until_final(flow_run["id"])] == [1] * (
            5 if name == "sync" else 4
        )


def test_the_run_log_says_what_a_wait_is_for_and_how_long_it_was(
    host: PrefectHost, run: Run, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"database": 2}})

    def logged(text: str) -> bool:
        return any(text in line for found in host.flow_runs("logged") for line in host.run_logs(found["id"]))

    with engine.hold("database:2", op_id="load"):
        child = run("shared", "logged")
        waits = "Waiting for slots: database: 2 of 2 held by process/process load"
        host.wait_for("the wait in the log", lambda: logged(waits), seconds=60)
    succeed(host, child)
    host.wait_for("its end in the log", lambda: logged("Slots granted after waiting"), seconds=20)


def test_runs_are_limited_in_all_and_by_tag(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    rule = {"key": "team", "value": "analytics", "limit": 1}
    configure(runs={"max_concurrent_runs": 2, "tag_concurrency_limits": [rule]})
    since = engine.store.snapshot_time()
    children = {name: run("nightly", name) for name in ("team1", "team2", "other")}
    children["async"] = run("nightly_async", "async-nightly")
    succeed(host, *children.values())
    granted = [row.slots for row in engine.store.history(since=since) if row.event == "granted"]
    assert granted.count({"runs": 1, "run_tag:team=analytics": 1}) == 2
    # One subflow each, which shares its root's run lease: four runs, four run claims.
    assert sum("runs" in slots for slots in granted) == 4
    assert most_at_once(read_intervals(intervals)["nightly"]) <= 2
    assert held(engine) == {}


def test_a_pool_of_the_flow_covers_its_tasks(host: PrefectHost, run: Run, configure: Configure) -> None:
    configure(pools={"limits": {"database": 2}})
    succeed(host, run("covered", "covered"))


@pytest.mark.parametrize("flow", ["retrying", "caching", "blocked", "patient"])
def test_slots_are_per_attempt(host: PrefectHost, run: Run, engine: Engine, configure: Configure, flow: str) -> None:
    """No slot in a retry's delay, none for a cache hit; skip and fail; waiting does not eat the timeout."""
    configure(pools={"limits": {"single": 1}})
    succeed(host, run(flow, flow))
    assert held(engine) == {}


def test_a_flow_that_finds_no_room_is_skipped_with_the_reason(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"single": 1}})
    with engine.hold("single", op_id="load"):
        succeed(host, run("skippable", "skipped"))
    (flow_run,) = host.flow_runs("skipped")
    assert (flow_run["state_type"], flow_run["state_name"]) == ("COMPLETED", "Skipped")
    assert flow_run["state"]["message"] == "single: 1 of 1 held by process/process load"
    assert read_intervals(intervals) == {}
    remembered = [row for row in engine.snapshot().claims if row.claim.run_id == flow_run["id"]]
    assert remembered == [], "somebody may start it again"
    succeed(host, run("skippable", "room"))
    assert len(read_intervals(intervals)["skippable"]) == 1


def test_a_killed_process_frees_its_slots(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"single": 1}})
    assert run("dying", "killed").wait(60) == -9
    died = time.monotonic()
    assert held(engine) == {"pool:single": 1}
    succeed(host, run("dying", "after"))
    assert time.monotonic() - died < TTL_SECONDS + 3 + 10  # TTL, grace, and a new process that starts and polls


def test_prefect_lists_the_collection(host: PrefectHost) -> None:
    code = "from prefect.plugins import load_prefect_collections as load; print(load()['penstock'].__name__)"
    assert host.run_python("-c", code).strip() == "penstock_prefect.collection"


def test_without_a_store_flows_run_and_the_log_says_that_nothing_is_limited(host: PrefectHost, run: Run) -> None:
    succeed(host, run("shared", "inactive", {"PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL": ""}))
    said = host.flow_log("inactive")
    assert said.count("Penstock is inactive, nothing is limited: no store is configured") == 1


def test_with_a_store_that_cannot_be_used_nothing_runs_unlimited(host: PrefectHost, run: Run, intervals: Path) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:1/x"
    away = {"PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL": url}
    child = run("nightly", "patient", away)
    host.wait_for("the outage in the log", lambda: "the store is away" in host.flow_log("patient"), seconds=60)
    child.terminate()
    host.wait_for_flows(child)
    assert read_intervals(intervals) == {}
    child = run("nightly", "wrong", away | {"PENSTOCK_ON_STORE_ERROR": "fail"})
    assert host.wait_for_flows(child) != [0]
    assert read_intervals(intervals) == {}
    assert "secret" not in host.flow_log("wrong")
    (flow_run,) = host.flow_runs("wrong")
    assert flow_run["state_type"] == "FAILED"


def test_sigterm_ends_the_waiters_in_threads(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"single": 1}})
    with engine.hold("single", op_id="load"):
        child = run("terminated", "terminated")
        host.wait_for("two waiters", lambda: len(engine.status()["waiters"]) == 2, seconds=60)
        child.terminate()
        host.wait_for_flows(child, seconds=30)  # while the slot is still held
        assert engine.status()["waiters"] == []
    assert read_intervals(intervals) == {}
