"""A real Airflow under limits: every kind of task, every outcome, runs, and the DAGs know nothing of it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.contract import Event, HistoryRow
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

Intervals = Callable[[str], list[tuple[float, float]]]
# Which store it is makes no difference to these, and a minute to all who wait for the tests.
ON_POSTGRESQL = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
LIMITS = {
    "pools": {"default_limit": 1, "limits": {"database": 2, "narrow": 1}},
    "runs": {
        "max_concurrent_runs": 2,
        "tag_concurrency_limits": [{"key": "team", "value": "analytics", "limit": 1}],
    },
}


def most_at_once(intervals: Iterable[tuple[float, float]]) -> int:
    """How many of the intervals overlap at most; one that begins as another ends does not overlap it."""
    events = sorted(event for began, ended in intervals for event in ((ended, -1), (began, 1)))
    most = now = 0
    for _, step in events:
        now += step
        most = max(most, now)
    return most


def wait_until_empty(host: AirflowHost, engine: Engine) -> None:
    """Wait until every slot is back: the last run's end reaches the store by way of the dag-processor."""

    def nothing_left() -> bool:
        status = engine.status()
        return not status["leases"] and not status["waiters"]

    host.processes.wait_for("every slot is free", nothing_left, seconds=60)


def half_a_minute_passes(store_url: str) -> None:
    """For all that hold slots now."""
    database = create_engine(store_url)
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE penstock_claim SET granted_at = granted_at - 30000000")
    database.dispose()


def events_of(engine: Engine, dag_id: str, *events: Event) -> list[HistoryRow]:
    return [row for row in engine.store.history() if row.event in events and f" {dag_id}/" in (row.label or "")]


def states(host: AirflowHost, dag_id: str, run_id: str) -> dict[str, tuple[str, int]]:
    return {task["task_id"]: (task["state"], task["try_number"]) for task in host.task_instances(dag_id, run_id)}


def task_logs(host: AirflowHost, dag_id: str, run_id: str) -> list[str]:
    def log_of(task: dict[str, Any]) -> str:
        return host.task_log(dag_id, run_id, task["task_id"], task["map_index"])

    return [log_of(task) for task in host.task_instances(dag_id, run_id)]


def test_an_unedited_dag_keeps_to_its_limits(host: AirflowHost, engine: Engine, intervals: Intervals) -> None:
    host.trigger("kinds", "one")
    host.trigger("kinds", "two")
    host.wait_for_runs("kinds", ["one", "two"], seconds=120)
    tasks = [task for run_id in ("one", "two") for task in host.task_instances("kinds", run_id)]
    assert Counter((task["state"], task["try_number"]) for task in tasks) == {("success", 1): 20}
    assert len(intervals("database")) == 14
    assert most_at_once(intervals("database")) == 2
    assert len(intervals("api")) == 4
    assert most_at_once(intervals("api")) == 1
    logs = task_logs(host, "kinds", "one") + task_logs(host, "kinds", "two")
    deferred = [log for log in logs if "Pausing task as DEFERRED" in log]
    assert deferred, "somebody had to wait longer than the short block"
    assert all("Penstock: " in log for log in logs), "the policy hangs the gate before every task"
    assert all(" waits: " in log for log in deferred)
    assert all("Penstock: the task waited " in log for log in deferred)
    assert any(" waits: database: 2 of 2 held by airflow/tests kinds/" in log for log in deferred)
    assert not events_of(engine, "kinds", Event.EXPIRED, Event.PARKED)
    wait_until_empty(host, engine)


def test_runs_are_limited_in_all_and_by_tag(host: AirflowHost, engine: Engine, intervals: Intervals) -> None:
    runs = {"plain_1": {}, "plain_2": {}, "tagged_1": {"team": "analytics"}, "tagged_2": {"team": "analytics"}}
    for run_id, conf in runs.items():
        host.trigger("runs", run_id, conf)
    host.wait_for_runs("runs", list(runs), seconds=150)
    whole = {
        run_id: (min(began for began, _ in intervals(run_id)), max(ended for _, ended in intervals(run_id)))
        for run_id in runs
    }
    assert most_at_once(whole.values()) == 2
    assert most_at_once([whole["tagged_1"], whole["tagged_2"]]) == 1
    wait_until_empty(host, engine)
    grants = [row for row in events_of(engine, "runs", Event.GRANTED) if "runs" in row.slots]
    assert Counter(row.label for row in grants) == {f"airflow/tests runs/{run_id}": 1 for run_id in runs}


@ON_POSTGRESQL
def test_a_run_that_a_user_ends_by_hand_gives_its_slot_back(host: AirflowHost, engine: Engine, store_url: str) -> None:
    """Airflow calls no callback then: the triggerer asks, because somebody waits."""
    for run_id in ("one", "two"):
        host.trigger("endless", run_id)
    host.processes.wait_for("both hold a run slot", lambda: len(engine.status()["leases"]) == 2, seconds=30)
    half_a_minute_passes(store_url)  # nobody asks about a run that has only just begun
    waiting = ["waits", "waits_too"]  # each for one of them: once nobody waits nobody asks
    for run_id in waiting:
        host.trigger("runs", run_id)
    host.processes.wait_for("the others wait", lambda: len(engine.status()["waiters"]) == 2, seconds=30)
    for run_id in ("one", "two"):
        host.mark_run("endless", run_id, "failed")
    host.wait_for_runs("runs", waiting, seconds=90)
    wait_until_empty(host, engine)
    ends = events_of(engine, "endless", Event.RELEASED)
    assert [row.detail for row in ends] == ["the host says that the run is over"] * 2


@ON_POSTGRESQL
def test_late_news_of_a_runs_end_leave_its_slot_to_the_run_that_a_user_has_cleared(
    host: AirflowHost, engine: Engine, intervals: Intervals
) -> None:
    processor = host.processes.pid("dag-processor")
    os.kill(processor, signal.SIGSTOP)  # it is to call the end's callback only when the run has begun again
    try:
        host.trigger("begun_again", "one")
        host.wait_for_runs("begun_again", ["one"], seconds=90)
        host.clear_task("begun_again", "one", "work")
        host.processes.wait_for("it works again", lambda: len(intervals("begun_again")) == 2, seconds=60)
    finally:
        os.kill(processor, signal.SIGCONT)
    host.wait_for_runs("begun_again", ["one"], seconds=90)
    wait_until_empty(host, engine)
    (freed,) = [row for row in events_of(engine, "begun_again", Event.RELEASED) if "runs" in row.slots]
    (task,) = host.task_instances("begun_again", "one")
    assert task["try_number"] == 2
    assert freed.at / 1_000_000 > datetime.fromisoformat(task["end_date"]).timestamp()


@ON_POSTGRESQL
def test_every_outcome_frees_the_slot(host: AirflowHost, engine: Engine, intervals: Intervals) -> None:
    host.trigger("outcomes", "one")
    host.wait_for_runs("outcomes", ["one"], seconds=120, expected="failed")
    assert states(host, "outcomes", "one") == {
        "fails": ("failed", 1),
        "hook_fails": ("failed", 1),
        "retries": ("failed", 2),
        "skips": ("skipped", 1),
    }
    assert len(intervals("narrow")) == 5
    assert most_at_once(intervals("narrow")) == 1
    wait_until_empty(host, engine)
    assert not events_of(engine, "outcomes", Event.EXPIRED)


# A store on a server is cut off by test_store_away.py.
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True, scope="session")
def test_nothing_starts_while_the_store_is_away(
    host: AirflowHost, engine: Engine, intervals: Intervals, store_url: str
) -> None:
    folder = Path(make_url(store_url).database or "").parent
    aside = folder.rename(folder.with_name("aside"))
    try:
        host.trigger("runs", "outage")
        asks_again = "the store is away, nothing starts before it answers; trying again"
        host.processes.wait_for("it asks", lambda: asks_again in host.task_log("runs", "outage", "step"), seconds=60)
        assert not intervals("outage")
    finally:
        aside.rename(folder)
    host.wait_for_runs("runs", ["outage"], seconds=60)
    assert len(intervals("outage")) == 2
    wait_until_empty(host, engine)


@ON_POSTGRESQL
def test_a_self_deferring_operator_goes_through_the_gate_again(
    host: AirflowHost, engine: Engine, intervals: Intervals, intervals_folder: Any
) -> None:
    host.trigger("deferring", "one")
    host.wait_for_runs("deferring", ["one"], seconds=120)
    assert len(intervals("narrow")) == 3
    assert most_at_once(intervals("narrow")) == 1
    log = host.task_log("deferring", "one", "deferring")
    assert log.count("Pausing task as DEFERRED") == 2, "by itself, and when it came back to a full pool"
    resumed_with = (intervals_folder / "deferring").read_text()
    assert '"job": {"id": 7, "name": "x"}' in resumed_with
    assert "event" in resumed_with
    wait_until_empty(host, engine)
    assert not events_of(engine, "deferring", Event.EXPIRED)


@ON_POSTGRESQL
def test_airflow_knows_the_provider(host: AirflowHost) -> None:
    assert "penstock" in host.command("providers", "list")
    assert "[penstock]" in host.command("config", "list", "--section", "penstock")


@pytest.mark.parametrize(("intervals_", "most"), [([], 0), ([(0, 2), (1, 3)], 2), ([(0, 1), (1, 2)], 1)])
def test_the_sweep_line_itself(intervals_: list[tuple[float, float]], most: int) -> None:
    assert most_at_once(intervals_) == most
