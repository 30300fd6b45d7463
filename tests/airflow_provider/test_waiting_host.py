"""Every way of waiting, and of holding while deferred, on a real Airflow: all DAGs run at once, then one looks back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import airflow_versions
import pytest
from airflow_recorded import forget_intervals, recorded
from intervals import Interval, most_at_once
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.contract import Event, HistoryRow

pytestmark = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
HELD = ["way_timeout", "withdrawn", "exempt"]
"""Pools whose one slot somebody else holds all the while."""
ENDS = {
    "way_defer": "success",
    "way_reschedule": "success",
    "way_block": "success",
    "way_skip": "success",
    "way_fail": "failed",
    "way_timeout": "failed",
    "way_skipped_run": "success",
    "deferral_kept": "success",
    "deferral_released": "success",
    "deferral_ends": "success",
    "only_empty": "success",
    "weight_low": "success",
    "weight_high": "success",
    "withdrawn": "success",
}
POOLS = ["way_defer", "way_reschedule", "way_block", "way_skip", "way_fail", "one_at_a_time", "weighed"]
LIMITS = {"pools": {"limits": dict.fromkeys([*POOLS, *HELD, "kept", "released", "ends"], 1)}}
RUN_ID = "waiting"


@dataclass(frozen=True)
class Ran:
    """What became of it: DAG → task → state, the intervals of work, what the store has noted."""

    host: AirflowHost
    states: Mapping[str, Mapping[str, str]]
    tries: Mapping[str, set[int]]
    work: Mapping[str, list[Interval]]
    events: list[HistoryRow]
    left_behind: bool
    """Whether the task that a user ended still waited a moment after."""
    last_end: Mapping[str, float]
    """DAG → the end of the last of its tasks that was in a worker, in seconds since 1970."""

    def log(self, dag_id: str, task_id: str, run_id: str = RUN_ID) -> str:
        return self.host.task_log(dag_id, run_id, task_id)

    def log_of_waiter(self, dag_id: str) -> str:
        """Of the one of two tasks that had to wait."""
        (log,) = [log for number in range(2) if " waits: " in (log := self.log(dag_id, f"task_{number}"))]
        return log

    def seen(self, pool: str, *events: Event) -> int:
        """How often the store noted one of these of a claim of that pool."""
        return sum(row.event in events and f"pool:{pool}" in row.slots for row in self.events)


@pytest.fixture(scope="module")
def ran(started_host: AirflowHost, limits: None, engine: Engine, intervals_folder: Path) -> Ran:
    host = started_host
    forget_intervals(intervals_folder)
    began = engine.store.snapshot_time()

    def at_the_triggerer(dag_id: str, task_id: str) -> bool:
        return " starting" in host.task_log(dag_id, RUN_ID, task_id)

    with ExitStack() as stack:
        for pool in HELD:
            stack.enter_context(engine.hold(pool))
        weighed = stack.enter_context(engine.hold("weighed"))
        exempt = _run_where_setup_is_exempt(host)
        for dag_id in [dag_id for dag_id in ENDS if dag_id != "weight_high"]:
            host.trigger(dag_id, RUN_ID)

        def works() -> bool:
            return any(one["name"] == "skipped_run" for one in recorded(intervals_folder))

        host.processes.wait_for("the run has its slot", works, seconds=120)
        host.trigger("way_skipped_run", "skipped")
        host.processes.wait_for("it waits", lambda: at_the_triggerer("withdrawn", "waits"), seconds=120)
        host.mark_task("withdrawn", RUN_ID, "waits", "success")

        def has_left() -> bool:
            return f"withdrawn/{RUN_ID}" not in [row["run_id"] for row in engine.status()["waiters"]]

        if airflow_versions.triggers_are_told_of_kills():
            host.processes.wait_for("it has left the queue", has_left, seconds=100)
        left_behind = not has_left()
        host.processes.wait_for("the lighter one waits", lambda: _can_be_granted(engine, "weight_low"), seconds=120)
        host.trigger("weight_high", RUN_ID)
        host.processes.wait_for("the heavier one waits", lambda: _can_be_granted(engine, "weight_high"), seconds=120)
        weighed.release()
        for dag_id, end in ENDS.items():
            host.wait_for_runs(dag_id, [RUN_ID], seconds=180, expected=end)
        host.wait_for_runs("way_skipped_run", ["skipped"], seconds=60)
        host.processes.wait_for("it is over", lambda: exempt.poll() is not None, seconds=120)
        assert exempt.returncode == 0, host.processes.tail("exempt", lines=100)
        host.processes.wait_for("the slots are back", lambda: not _runs_that_hold(engine), seconds=60)
    tasks = {dag_id: host.task_instances(dag_id, RUN_ID) for dag_id in ENDS}
    tasks["skipped"] = host.task_instances("way_skipped_run", "skipped")
    work: dict[str, list[Interval]] = {}
    for one in recorded(intervals_folder):
        work.setdefault(one["name"], []).append((one["began"], one["ended"]))
    forget_intervals(intervals_folder)
    return Ran(
        host,
        states={dag_id: {task["task_id"]: task["state"] for task in of_dag} for dag_id, of_dag in tasks.items()},
        tries={dag_id: {task["try_number"] for task in of_dag} for dag_id, of_dag in tasks.items()},
        work={name: sorted(intervals) for name, intervals in work.items()},
        events=list(engine.store.history(since=began)),
        left_behind=left_behind,
        last_end={dag_id: max(ends) for dag_id, of_dag in tasks.items() if (ends := list(map(_end, of_dag)))},
    )


def _run_where_setup_is_exempt(host: AirflowHost) -> subprocess.Popen[bytes]:
    """In a process of its own: the setting is one of the whole installation."""
    command = [Path(sys.executable).with_name("airflow"), "dags", "test", "exempt_setup"]
    return host.processes.start_to_end("exempt", command, {"AIRFLOW__PENSTOCK__EXEMPT_SETUP_TEARDOWN": "True"})


def _can_be_granted(engine: Engine, dag_id: str) -> bool:
    """Whether the DAG's task has been deferred for so long that a free slot would be its."""
    seen = engine.snapshot()
    ops = [row for row in seen.claims if row.claim.op_id and row.claim.run_id == f"{dag_id}/{RUN_ID}"]
    return any(not row.session_ids and row.eligible_at <= seen.now for row in ops)


def _end(task: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(task["end_date"]).timestamp()


def _runs_that_hold(engine: Engine) -> list[str]:
    return [row["run_id"] for row in engine.status()["leases"] if row["kind"] == "run"]


@pytest.mark.parametrize("way", ["defer", "reschedule", "block"])
def test_two_tasks_after_one_slot(ran: Ran, way: str) -> None:
    name = f"way_{way}"
    assert set(ran.states[name].values()) == {"success"}
    assert ran.tries[name] == {1}
    assert len(ran.work[name]) == 2
    assert most_at_once(ran.work[name]) == 1
    log = ran.log_of_waiter(name)
    assert f" waits: {name}: 1 of 1 held by airflow/tests {name}/{RUN_ID} task_" in log
    assert "Penstock: place 1 in the queue" in log
    assert f"{ran.host.url}/dags/{name}/runs/{RUN_ID}/tasks/task_" in log, "a link to who holds the slot"
    assert "Penstock: the task waited " in log
    assert ("Pausing task as DEFERRED" in log) == (way == "defer")
    assert ("marking task as UP_FOR_RESCHEDULE" in log) == (way == "reschedule")
    assert (" is granted, after " in log) == (way == "defer"), "the trigger's lines are in the task's log"
    assert ran.seen(name, Event.GRANTED) == 2
    assert not ran.seen(name, Event.EXPIRED, Event.PARKED, Event.WITHDRAWN), "each kept its one place"


def test_of_two_that_wait_the_one_of_greater_weight_is_first_though_it_came_later(ran: Ran) -> None:
    (low,), (high,) = ran.work["weight_low"], ran.work["weight_high"]
    assert high[1] <= low[0]


def test_setup_and_teardown_take_nothing_where_they_are_exempt(ran: Ran) -> None:
    """Their pool was full all the while."""
    assert [len(ran.work[f"exempt_{name}"]) for name in ("make", "use", "remove")] == [1, 1, 1]
    takers = [row.label for row in ran.events if row.event is Event.GRANTED and "pool:exempt" in row.slots]
    assert [label for label in takers if label and label.startswith("airflow/")] == []


def test_a_wait_ends_at_its_time_out_though_the_task_is_deferred(ran: Ran) -> None:
    log = ran.log("way_timeout", "times_out")
    assert "Pausing task as DEFERRED" in log
    assert "no slot within 15 s (way_timeout: 1 of 1 held by process/process" in log
    assert "timed_out" not in ran.work


@pytest.mark.parametrize(
    ("dag_id", "ends"), [("way_skip", ["skipped", "success"]), ("way_fail", ["failed", "success"])]
)
def test_a_task_that_does_not_wait_says_why(ran: Ran, dag_id: str, ends: list[str]) -> None:
    assert sorted(ran.states[dag_id].values()) == ends
    (refused,) = [task for task, state in ran.states[dag_id].items() if state == ends[0]]
    assert f"{dag_id}: 1 of 1 held by airflow/tests {dag_id}/{RUN_ID} task_" in ran.log(dag_id, refused)
    assert len(ran.work[dag_id]) == 1


def test_a_run_that_does_not_wait_is_skipped_to_its_last_task(ran: Ran) -> None:
    assert ran.states["skipped"] == {"first": "skipped", "last": "skipped"}
    assert ran.states["way_skipped_run"] == {"first": "success", "last": "success"}
    why = f"one_at_a_time: 1 of 1 held by airflow/tests way_skipped_run/{RUN_ID}"
    assert why in ran.log("way_skipped_run", "first", "skipped")
    assert "skipped" not in ran.work


def test_an_operator_holds_its_slots_while_it_is_deferred(ran: Ran) -> None:
    (first, last), ((began, _),) = ran.work["defers_kept"], ran.work["beside_kept"]
    assert began < first[0] or began >= last[1], "never between the two parts of the other"
    assert "keeps its slots while it is deferred" in ran.log("deferral_kept", "defers_kept")
    assert ran.seen("kept", Event.GRANTED) == 2
    assert not ran.seen("kept", Event.EXPIRED)


def test_an_operator_of_a_pool_that_says_so_gives_its_slots_back_meanwhile(ran: Ran) -> None:
    assert len(ran.work["defers_released"]) == 2
    assert most_at_once(ran.work["defers_released"] + ran.work["beside_released"]) == 1
    assert ran.seen("released", Event.GRANTED) == 3, "the operator claimed again when it came back"
    assert "gives its slots back while it is deferred" in ran.log("deferral_released", "defers_released")


def test_a_trigger_that_ends_the_task_itself_gives_the_slots_back(ran: Ran) -> None:
    assert ran.states["deferral_ends"] == {"ends": "success", "after": "success"}
    (deferred,), ((began, _),) = ran.work["ends"], ran.work["after_end"]
    assert began < deferred[0] or began - deferred[1] >= 7.0, "held until the trigger fired"
    assert not ran.seen("ends", Event.EXPIRED)


def test_a_run_of_tasks_that_never_reach_a_worker_takes_nothing(ran: Ran) -> None:
    assert set(ran.states["only_empty"].values()) == {"success"}
    assert not [row for row in ran.events if " only_empty/" in (row.label or "")]


def test_a_deferred_task_that_a_user_ends_leaves_the_queue(ran: Ran) -> None:
    """At once, or before Airflow tells triggers of it when the place is no longer renewed."""
    told = airflow_versions.triggers_are_told_of_kills()
    assert ran.states["withdrawn"] == {"waits": "success"}
    assert ran.left_behind is not told
    assert ran.seen("withdrawn", Event.WITHDRAWN) == told
    assert not ran.seen("withdrawn", Event.PARKED)
    assert "withdrawn" not in ran.work


def test_the_slot_of_a_run_is_back_soon_after_its_last_task(ran: Ran, tables: list[str]) -> None:
    """By Airflow's own callbacks: the scheduler sees the end, the dag-processor calls them."""
    told = "the run is over"
    back = {row.label: row.at / 1_000_000 for row in ran.events if row.event is Event.RELEASED and row.detail == told}
    delays = [at - ran.last_end[dag_id] for dag_id in ENDS if (at := back.get(f"airflow/tests {dag_id}/{RUN_ID}"))]
    assert len(delays) == len(ENDS) - 1, "all but the one that never took a slot"
    tables.append(
        f"From the end of a run's last task to the return of the run's slot, {len(delays)} runs: "
        f"median {median(delays):.1f} s, longest {max(delays):.1f} s"
    )
    assert max(delays) < 60
