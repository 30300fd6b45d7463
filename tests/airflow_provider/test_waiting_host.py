"""Every way of waiting, and of holding while deferred, on a real Airflow."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from intervals import most_at_once
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.contract import Event

pytestmark = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
Intervals = Callable[[str], list[tuple[float, float]]]
POOLS = ["way_defer", "way_reschedule", "way_block", "way_timeout", "way_skip", "way_fail"]
POOLS += ["one_at_a_time", "kept", "released", "ends", "withdrawn"]
LIMITS = {"pools": {"limits": dict.fromkeys(POOLS, 1)}}


def run(host: AirflowHost, dag_id: str, *, expected: str | None = "success", seconds: float = 150) -> dict[str, str]:
    """Run the DAG once; task → state."""
    host.trigger(dag_id, "one")
    host.wait_for_runs(dag_id, ["one"], seconds=seconds, expected=expected)
    return states(host, dag_id, "one")


def states(host: AirflowHost, dag_id: str, run_id: str) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in host.task_instances(dag_id, run_id)}


def log_of_waiter(host: AirflowHost, dag_id: str, run_id: str = "one") -> str:
    """Of the task of the two that had to wait."""
    logs = [host.task_log(dag_id, run_id, f"task_{number}") for number in range(2)]
    (log,) = [log for log in logs if " waits: " in log]
    return log


def leases_of(engine: Engine, pool: str) -> list[str]:
    return [
        row["op_id"] for row in engine.status()["leases"] if any(s["limit"] == f"pool:{pool}" for s in row["slots"])
    ]


def waiters_for(engine: Engine, pool: str) -> list[str]:
    return [row["op_id"] for row in engine.status()["waiters"] if pool in row["pools"]]


@pytest.mark.parametrize("way", ["defer", "reschedule", "block"])
def test_two_tasks_after_one_slot(host: AirflowHost, engine: Engine, intervals: Intervals, way: str) -> None:
    assert set(run(host, f"way_{way}").values()) == {"success"}
    assert all(task["try_number"] == 1 for task in host.task_instances(f"way_{way}", "one"))
    assert len(intervals(f"way_{way}")) == 2
    assert most_at_once(intervals(f"way_{way}")) == 1
    log = log_of_waiter(host, f"way_{way}")
    assert f" waits: way_{way}: 1 of 1 held by airflow/tests way_{way}/one task_" in log
    assert "Penstock: place 1 in the queue" in log
    assert f"{host.url}/dags/way_{way}/runs/one/tasks/task_" in log, "a link to who holds the slot"
    assert "Penstock: the task waited " in log
    assert ("Pausing task as DEFERRED" in log) == (way == "defer")
    assert ("marking task as UP_FOR_RESCHEDULE" in log) == (way == "reschedule")
    if way == "defer":
        assert " is granted, after " in log, "the trigger's lines are in the task's log"
    grants = [row for row in engine.store.history() if row.event is Event.GRANTED and f"pool:way_{way}" in row.slots]
    assert len(grants) == 2
    ended = [row for row in engine.store.history() if row.event in (Event.EXPIRED, Event.PARKED, Event.WITHDRAWN)]
    assert not [row for row in ended if f"pool:way_{way}" in row.slots], "each kept its one place"


def test_a_wait_ends_at_its_time_out_though_the_task_is_deferred(host: AirflowHost, intervals: Intervals) -> None:
    found = run(host, "way_timeout", expected=None)
    first = "holds" if found["holds"] == "success" else "times_out"
    if first == "holds":
        assert found == {"holds": "success", "times_out": "failed"}
        log = host.task_log("way_timeout", "one", "times_out")
        assert "Pausing task as DEFERRED" in log
        assert "no slot within 15 s (way_timeout: 1 of 1 held by airflow/tests way_timeout/one holds)" in log
        assert not intervals("timed_out")


def test_a_task_that_does_not_wait_is_skipped_and_says_why(host: AirflowHost, intervals: Intervals) -> None:
    assert sorted(run(host, "way_skip").values()) == ["skipped", "success"]
    (skipped,) = [task for task, state in states(host, "way_skip", "one").items() if state == "skipped"]
    log = host.task_log("way_skip", "one", skipped)
    assert "Penstock: airflow/tests way_skip/one task_" in log
    assert "way_skip: 1 of 1 held by airflow/tests way_skip/one task_" in log
    assert len(intervals("way_skip")) == 1


def test_a_task_that_does_not_wait_fails_and_says_why(host: AirflowHost) -> None:
    assert sorted(run(host, "way_fail", expected="failed").values()) == ["failed", "success"]
    (failed,) = [task for task, state in states(host, "way_fail", "one").items() if state == "failed"]
    assert "way_fail: 1 of 1 held by airflow/tests way_fail/one task_" in host.task_log("way_fail", "one", failed)


def test_a_run_that_does_not_wait_is_skipped_to_its_last_task(
    host: AirflowHost, engine: Engine, intervals: Intervals
) -> None:
    host.trigger("way_skipped_run", "runs")
    host.processes.wait_for("it has its slot", lambda: bool(leases_of(engine, "one_at_a_time")), seconds=60)
    host.trigger("way_skipped_run", "skipped")
    host.wait_for_runs("way_skipped_run", ["runs", "skipped"], seconds=120)
    assert set(states(host, "way_skipped_run", "skipped").values()) == {"skipped"}
    assert set(states(host, "way_skipped_run", "runs").values()) == {"success"}
    assert "one_at_a_time: 1 of 1 held by airflow/tests way_skipped_run/runs" in host.task_log(
        "way_skipped_run", "skipped", "first"
    )
    assert not intervals("skipped")


def test_an_operator_holds_its_slots_while_it_is_deferred(
    host: AirflowHost, engine: Engine, intervals: Intervals
) -> None:
    run(host, "deferral_kept")
    deferring, ((began, _),) = sorted(intervals("defers_kept")), intervals("beside_kept")
    assert len(deferring) == 2
    assert began < deferring[0][0] or began > deferring[1][1], "never between the two parts of the other"
    log = host.task_log("deferral_kept", "one", "defers_kept")
    assert "keeps its slots while it is deferred" in log
    expired = [row for row in engine.store.history() if row.event is Event.EXPIRED and "pool:kept" in row.slots]
    assert not expired


def test_an_operator_of_a_pool_that_says_so_gives_its_slots_back_meanwhile(
    host: AirflowHost, intervals: Intervals
) -> None:
    run(host, "deferral_released")
    (first, last), ((began, ended),) = sorted(intervals("defers_released")), intervals("beside_released")
    assert began < first[0] or (first[1] <= began and ended <= last[0]), "between the two parts of the other"
    assert "gives its slots back while it is deferred" in host.task_log("deferral_released", "one", "defers_released")


def test_a_trigger_that_ends_the_task_itself_gives_the_slots_back(
    host: AirflowHost, engine: Engine, intervals: Intervals
) -> None:
    assert run(host, "deferral_ends") == {"ends": "success", "after": "success"}
    (deferred,), ((began, _),) = intervals("ends"), intervals("after_end")
    assert began < deferred[0] or began - deferred[1] >= 7.0, "held until the trigger fired"
    ends = [row for row in engine.store.history() if row.event is Event.EXPIRED and "pool:ends" in row.slots]
    assert not ends


def test_a_run_of_tasks_that_never_reach_a_worker_takes_nothing(host: AirflowHost, engine: Engine) -> None:
    run(host, "only_empty")
    assert not [row for row in engine.store.history() if " only_empty/" in (row.label or "")]


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_deferred_task_that_a_user_ends_leaves_the_queue(host: AirflowHost, engine: Engine, state: str) -> None:
    host.trigger("withdrawn", state)
    host.processes.wait_for("one waits", lambda: len(waiters_for(engine, "withdrawn")) == 1, seconds=60)
    (waits,) = waiters_for(engine, "withdrawn")

    def is_taken_up() -> bool:
        return " starting" in host.task_log("withdrawn", state, waits)

    host.processes.wait_for("the triggerer waits for it", is_taken_up, seconds=60)
    host.mark_task("withdrawn", state, waits, state)
    host.processes.wait_for("it has left", lambda: not waiters_for(engine, "withdrawn"), seconds=20)
    host.mark_run("withdrawn", state, "failed")
    host.processes.wait_for("its slot is free", lambda: not leases_of(engine, "withdrawn"), seconds=60)


def test_without_a_triggerer_tasks_are_rescheduled(host: AirflowHost, intervals: Intervals) -> None:
    os.kill(host.processes.pid("triggerer"), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while triggerer_status(host) == "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    host.processes.kill("triggerer")
    try:
        host.trigger("way_defer", "rescheduled")
        host.wait_for_runs("way_defer", ["rescheduled"], seconds=120)
    finally:
        host.processes.start("triggerer", [Path(sys.executable).parent / "airflow", "triggerer"])
    assert most_at_once(intervals("way_defer")) == 1
    log = log_of_waiter(host, "way_defer", "rescheduled")
    assert "no triggerer runs, so the task is rescheduled instead of deferred; start `airflow triggerer`" in log
    assert "Pausing task as DEFERRED" not in log
    host.processes.wait_for("there is a triggerer again", lambda: triggerer_status(host) == "healthy", seconds=60)


def triggerer_status(host: AirflowHost) -> str | None:
    with urllib.request.urlopen(f"{host.url}/api/v2/monitor/health", timeout=10) as response:
        status: str | None = json.load(response)["triggerer"]["status"]
        return status
