"""How waits are shown by a real server, and how they end with what is around them."""

from __future__ import annotations

import time
from pathlib import Path

from intervals import read_intervals
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from prefect_api import artifacts, events, states
from prefect_runs import Configure, Run, held, succeed


def test_a_wait_is_shown_and_eats_neither_time_nor_attempts(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"single": 1, "database": 2}})
    with engine.hold("database:2", op_id="load"):
        with engine.hold("single", op_id="import"):
            child = run("shown", "shown", script="waits")
            host.wait_for("the flow run", lambda: bool(host.flow_runs("shown")), seconds=90)
            flow_run_id = host.flow_runs("shown")[0]["id"]
            host.wait_for("the artifact", lambda: bool(artifacts(host, flow_run_id)), seconds=60)
            (artifact,) = artifacts(host, flow_run_id)
            assert "**prefect/prefect-test shown/shown** has waited" in artifact["data"]
            assert "| pool:single | 1 | 1 of 1 | process/process import |" in artifact["data"]
            assert host.flow_runs("shown")[0]["state_name"] == "Running"

        def awaiting() -> bool:
            return any(row["state_name"] == "AwaitingConcurrencySlot" for row in host.task_runs([flow_run_id]))

        host.wait_for("a task that waits", awaiting, seconds=60)
        (task_run,) = host.task_runs([flow_run_id])
        assert task_run["state"]["message"] == "database: 2 of 2 held by process/process load"
        (waiter,) = engine.status()["waiters"]
        assert waiter["label"].startswith("prefect/prefect-test shown/shown waiting-")
        time.sleep(1.0)
    succeed(host, child)

    runs = {row["name"].partition("-")[0]: row for row in host.wait_until_final(flow_run_id)}
    waited, at_once = runs["waiting"], runs["at_once"]
    assert states(host, waited["id"]) == ["Pending", "Running", "AwaitingConcurrencySlot", "Running", "Completed"]
    assert states(host, at_once["id"]) == ["Pending", "Running", "Completed"]
    assert waited["run_count"] == at_once["run_count"] == 1
    assert waited["total_run_time"] < waited["estimated_run_time"] + 1
    assert (len(read_intervals(intervals)["hook"]), host.flow_runs("shown")[0]["run_count"]) == (1, 1)

    (artifact,) = artifacts(host, flow_run_id)
    assert "got its slots after" in artifact["data"], "the same one, brought up to date"
    said = host.run_logs(flow_run_id)
    for line in ("Waiting for slots: database: 2 of 2", "Still waiting for slots after 5 s: single", "Slots granted: "):
        assert any(line in message for message in said), line

    def told() -> list[str]:
        return [event["event"] for event in events(host, f"flow-run.{flow_run_id}", "penstock.slots.")]

    host.wait_for("all events", lambda: len(told()) >= 5, seconds=30)
    expected = ["waiting", "granted", "waiting", "granted", "granted"]
    assert told() == [f"penstock.slots.{what}" for what in expected]
    (granted,) = events(host, f"task-run.{at_once['id']}", "penstock.slots.")
    assert granted["payload"]["pools"] == {"unlimited": 1}
    assert granted["payload"]["waited_seconds"] < 1


def test_sigterm_ends_the_waiters_of_a_flow_that_is_under_no_limit(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"database": 1}})
    with engine.hold("database", op_id="load"):
        child = run("undecorated", "undecorated", script="waits")
        host.wait_for("two waiters", lambda: len(engine.status()["waiters"]) == 2, seconds=90)
        child.terminate()
        host.wait_for_flows(child, seconds=60)  # while the slot is still held
        assert engine.status()["waiters"] == []
    assert "waiting" not in read_intervals(intervals)


def test_sigterm_ends_a_waiter_in_another_process(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"database": 1}})
    with engine.hold("database", op_id="load"):
        child = run("pooled", "pooled-waiting", script="waits")
        host.wait_for("a waiter", lambda: len(engine.status()["waiters"]) == 1, seconds=150)
        child.terminate()
        host.wait_for_flows(child, seconds=90)  # while the slot is still held
        assert engine.status()["waiters"] == []
    assert "waiting" not in read_intervals(intervals)


def test_a_blocked_event_loop_loses_nothing(
    host: PrefectHost, run: Run, intervals: Path, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"single": 1}})
    child = run("blocking", "blocking", script="waits")
    host.wait_for("the flow's slot", lambda: held(engine) == {"pool:single": 1, "runs": 1}, seconds=90)
    (before,) = [row["claim_id"] for row in engine.status()["leases"]]
    while child.poll() is None and "ended" not in read_intervals(intervals):
        assert [row["claim_id"] for row in engine.status()["leases"]] in ([before], [])
        time.sleep(0.5)
    succeed(host, child)
    assert "are lost" not in host.flow_log("blocking")
