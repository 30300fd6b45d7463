"""The gate on a real store with a made-up task context: what runs, what waits, and that nothing runs unlimited."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import airflow_versions
import jinja2
import pytest
from penstock import changes
from penstock.claim import Claim
from penstock.config import Concurrency
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import (
    Blocked,
    ConfigError,
    DeploymentConflict,
    ImpossibleClaim,
    SchemaMismatch,
    StoreUnavailable,
    WaitTimeout,
)
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from penstock_airflow import asking, compatibility, gate, holding, installation, limits, runs
from penstock_airflow.installation import Installation
from penstock_airflow.limits import Limits, RunLimits
from penstock_airflow.said import Said
from penstock_airflow.trigger import HoldingTrigger

LIMITS = {"pools": {"limits": {"narrow": 1}}, "runs": {"max_concurrent_runs": 1}}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'penstock.db'}"


def connected(url: str) -> Engine:
    store = SqlStore(url)
    store.check_schema()
    return Engine(store, host="airflow", deployment="tests", settings=Settings())


@pytest.fixture
def other(url: str) -> Iterator[Engine]:
    """An engine in the part of the other tasks, each of which would be a process of its own."""
    with connected(url) as engine:
        changes.apply(engine, Concurrency.from_document(LIMITS), expected_version=0)
        yield engine


@pytest.fixture(autouse=True)
def here(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """This process as the worker of one task, with nothing left of an earlier one."""
    settings = Installation(
        store_url=url, deployment="tests", short_block_seconds=0.2, min_deferral_seconds=0.0, store_retry_seconds=0.5
    )
    monkeypatch.setattr(installation, "_engines", {})
    monkeypatch.setattr(holding, "_held", [])
    monkeypatch.setattr(asking, "triggerer_runs", lambda: None)
    settle(monkeypatch, settings)
    yield settings
    for engine in installation._engines.values():
        engine.close()


def settle(monkeypatch: pytest.MonkeyPatch, settings: Installation) -> None:
    """Have this process work under these settings from now on."""
    monkeypatch.setattr(installation, "installation", lambda: settings)
    for module in (gate, holding):
        monkeypatch.setattr(module, "installation", lambda: settings)


def context(task_id: str = "task", *, run_id: str = "run", next_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """As much of a task's context as the gate reads; with `next_kwargs` that of a task whose wait is over."""
    resumed = SimpleNamespace(
        next_method=compatibility.RESUME_METHOD, next_kwargs=airflow_versions.serialized_arguments(next_kwargs)
    )
    ti = SimpleNamespace(dag_id="dag", run_id=run_id, task_id=task_id, map_index=-1, try_number=1, log_url=None)
    ti._ti_context_from_server = resumed if next_kwargs is not None else None
    task = SimpleNamespace(
        pool="narrow", pool_slots=1, priority_weight=1, owner="ann", task_type="Any", queue="default"
    )
    task.upstream_task_ids = set()
    task.dag = SimpleNamespace(tags=(), tasks=[], task_dict={})
    task.task_id, task.get_dag = task_id, lambda: task.dag
    return {"ti": ti, "task": task, "dag": task.dag}


def claims_of(deferred: Any) -> list[Claim]:
    return [Claim.from_dict(values) for values in json.loads(deferred.trigger.claims)]


def deferral(**facts: Any) -> Any:
    """What the gate raises for a task that has to wait."""
    with pytest.raises(airflow_versions.exception("TaskDeferred")) as caught:
        gate.enter(context(**facts))
    return caught.value


def labels(engine: Engine, what: str) -> list[str]:
    return sorted(row["label"] for row in engine.status()[what])


def test_free_slots_are_taken_and_given_back(other: Engine) -> None:
    gate.enter(context())
    assert labels(other, "leases") == ["airflow/tests dag/run", "airflow/tests dag/run task"]
    holding.leave()
    assert labels(other, "leases") == ["airflow/tests dag/run"], "the run's lease is the run's, not the task's"
    assert not other.status()["sessions"][1:], "the worker's session is closed"


def test_a_full_pool_defers_with_the_place_kept(other: Engine) -> None:
    lease = other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    deferred = deferral(task_id="second")
    run, op = claims_of(deferred)
    (waiter,) = other.status()["waiters"]
    assert (run.op_id, op.op_id) == (None, "second")
    assert waiter["claim_id"] == op.claim_id
    later = other.request(other.claim("narrow", run_id="dag/run", op_id="third"))
    later.step()
    lease.release()
    assert not isinstance(later.step(), Granted), "the deferred one is before it"
    assert deferred.method_name == compatibility.RESUME_METHOD


def test_without_a_run_slot_no_place_in_a_pool_is_taken(other: Engine) -> None:
    other.request(other.run_claim("other/run"), ticket=True, probed=True).step()
    deferred = deferral()
    assert [claim.op_id for claim in claims_of(deferred)] == [None, "task"]
    assert labels(other, "waiters") == ["airflow/tests dag/run"]


def test_a_run_that_would_begin_with_full_pools_leaves_its_run_slot_to_others(
    other: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    lease = other.acquire(other.claim("narrow", run_id="other/run", op_id="first"))
    begun = context()
    begun["dag"].tasks = [begun["task"]]
    with pytest.raises(airflow_versions.exception("TaskDeferred")) as deferred:
        gate.enter(begun)
    assert not other.status()["waiters"]
    assert "dag/run waits: narrow: 1 of 1 held by airflow/tests other/run first" in caplog.text
    assert "the run does not begin before there is room" in caplog.text
    assert "place " not in caplog.text
    assert [claim.roots for claim in claims_of(deferred.value)] == [(("narrow",),), ()]
    lease.release()
    installation._engines.clear()  # the task comes back in another process
    gate.enter(begun)
    assert labels(other, "leases") == ["airflow/tests dag/run", "airflow/tests dag/run task"]


def test_the_limits_within_that_a_run_began_with_count_for_its_later_tasks(other: Engine) -> None:
    """Whatever its DAG says by now, and though the task names no pool."""
    run = other.request(other.run_claim("dag/run", within={"max_concurrent": 1}), ticket=True, probed=True)
    run.step()
    other.acquire(other.claim(run_id="dag/run", op_id="first", in_run=True))
    later = context("later")
    later["task"].pool = "default_pool"
    with pytest.raises(airflow_versions.exception("TaskDeferred")):
        gate.enter(later)
    assert labels(other, "waiters") == ["airflow/tests dag/run later"]


def test_the_first_task_of_a_run_asks_after_runs_that_were_silent_for_long(
    other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callbacks of a run that ended while the store was away gave up: other hosts could wait for it for a day."""
    asked: list[str] = []
    monkeypatch.setattr(asking, "run_is_alive_here", lambda _, run_id: asked.append(run_id) or run_id != "over")
    changes.apply(other, Concurrency.from_document({"runs": {"max_concurrent_runs": 4}}), expected_version=1)
    for run_id in ("over", "lives"):
        other.request(other.run_claim(f"dag/{run_id}"), ticket=True, probed=True).step()
    gate.enter(context())
    holding.leave()
    assert not asked, "they have only just begun"
    monkeypatch.setattr(runs, "FORGOTTEN_SECONDS", -1.0)
    gate.enter(context("second"))
    holding.leave()
    assert not asked, "its run has begun before"
    gate.enter(context(run_id="other"))
    assert set(asked) == {"over", "lives", "run", "other"}
    assert sorted(row["run_id"] for row in other.status()["leases"] if row["op_id"] is None) == [
        "dag/lives",
        "dag/other",
        "dag/run",
    ]


def test_the_log_says_who_is_waited_for_and_for_how_long(other: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    lease = other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    deferred = deferral()
    assert "task waits: narrow: 1 of 1 held by airflow/tests dag/run first" in caplog.text
    lease.release()
    since = {**deferred.kwargs, "since": time.time() - 90}
    caplog.clear()
    gate.enter(context(next_kwargs=since))
    assert "the task waited 90." in caplog.text


def test_the_log_says_once_which_tags_of_the_dag_no_limit_sees(other: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def tagged(**facts: Any) -> dict[str, Any]:
        made = context(**facts)
        made["dag"].tags = {"team:ml", "team:analytics", "nightly"}
        return made

    told = "no limit sees the DAG's tags team:ml: a tag key has one value, and theirs is taken"
    gate.enter(tagged())
    assert caplog.text.count(told) == 1
    holding.leave()
    gate.enter(tagged(next_kwargs={"since": time.time()}))
    assert caplog.text.count(told) == 1, "it comes back to the log that says so"


@pytest.mark.parametrize(("queues", "in_queue"), [(("*",), True), (("spark_*", "etl"), False), (("def*",), True)])
def test_the_wait_goes_where_a_triggerer_takes_it(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, *, queues: tuple[str, ...], in_queue: bool
) -> None:
    """Where there are only triggerers with queues, none took up a wait without one: the task stayed deferred."""
    settle(monkeypatch, replace(here, triggerer_queues=queues))
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    assert deferral().trigger.supports_triggerer_queue is in_queue


def test_a_second_deferral_counts_from_the_first(other: Engine) -> None:
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    first = deferral()
    again = deferral(next_kwargs=first.kwargs)
    assert again.kwargs == {"since": pytest.approx(first.kwargs["since"], abs=0.01)}


def test_a_task_that_need_not_wait_says_nothing_of_it(other: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    gate.enter(context())
    assert "waited" not in caplog.text


def test_a_fork_that_returns_does_not_free_its_parents_slots(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.enter(context())
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        holding.leave()
    assert "airflow/tests dag/run task" in labels(other, "leases")


def test_more_than_there_is_fails_at_once(other: Engine) -> None:
    greedy = context()
    greedy["task"].pool_slots = 2
    with pytest.raises(ImpossibleClaim, match=r"narrow.*Ask for less, or raise the limit"):
        gate.enter(greedy)
    assert not other.status()["waiters"]


def away(*_: Any, **__: Any) -> None:
    raise StoreUnavailable("nobody answers")


@pytest.mark.parametrize("call", ["acquire", "configuration"])
def test_a_store_that_stays_away_fails_the_task(
    other: Engine, monkeypatch: pytest.MonkeyPatch, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SqlStore, call, away)
    with pytest.raises(StoreUnavailable, match="nobody answers"):
        gate.enter(context())
    assert "trying again" in caplog.text


def test_a_task_makes_no_store_of_its_own(here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new store has no limits: where the file is gone, every task would run unlimited."""
    with pytest.raises(StoreUnavailable, match="file is not there"):
        gate.enter(context())
    assert not list(tmp_path.iterdir())
    (tmp_path / "penstock.db").touch()
    with pytest.raises(SchemaMismatch, match="penstock db upgrade"):
        gate.enter(context())


def test_a_store_that_is_away_at_the_end_does_not_fail_the_task(
    other: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate.enter(context())
    with monkeypatch.context() as outage:
        outage.setattr(SqlStore, "release", away)
        holding.leave()
    assert "they are freed when they expire" in caplog.text


def test_a_url_that_cannot_be_read_makes_tasks_fail_and_no_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any, **__: Any) -> None:
        raise RuntimeError("the command of store_url_cmd failed")

    monkeypatch.setattr(compatibility, "configuration", lambda: SimpleNamespace(get=unreadable))
    installation.store_is_configured.cache_clear()
    assert installation.store_is_configured()
    installation.store_is_configured.cache_clear()
    with pytest.raises(ConfigError, match="store_url: its command or secrets backend fails"):
        Installation.configured()


@pytest.mark.parametrize("name", ["short_block_seconds", "min_deferral_seconds", "session_ttl_seconds"])
def test_an_impossible_time_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[penstock\] {name}: -1: seconds from"):
        Installation(store_url=None, deployment="tests", **{name: -1})  # type: ignore[arg-type]


# -- waiting in one way or another -----------------------------------------------------------------------------------


def said(monkeypatch: pytest.MonkeyPatch, run: RunLimits | None = None, **words: Any) -> None:
    """What the DAG's author said of the task, and of the run."""
    monkeypatch.setattr(limits, "of_task", lambda _: Limits(**words))
    monkeypatch.setattr(limits, "of_run", lambda _: run or RunLimits())


def rescheduled(**facts: Any) -> float:
    """After how many seconds the gate has the task come back."""
    with pytest.raises(airflow_versions.exception("AirflowRescheduleException")) as caught:
        gate.enter(context(**facts))
    return float(caught.value.reschedule_date.timestamp() - time.time())


def test_a_rescheduled_task_keeps_its_place_and_finds_it_again(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    settle(monkeypatch, replace(here, waiting="reschedule", reschedule_seconds=45.0))
    lease = other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    assert 40 < rescheduled(task_id="second") < 46
    (waiter,) = other.status()["waiters"]
    later = other.request(other.claim("narrow", run_id="dag/run", op_id="third"))
    later.step()
    rescheduled(task_id="second")
    assert other.status()["waiters"][0]["claim_id"] == waiter["claim_id"]
    assert other.status()["waiters"][0]["enqueued_at"] == waiter["enqueued_at"]
    lease.release()
    gate.enter(context("second"))
    assert "airflow/tests dag/run second" in labels(other, "leases")
    assert "the task waited " in caplog.text


def test_a_rescheduled_task_that_waits_for_a_run_slot_leaves_the_runs_place(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch, replace(here, waiting="reschedule"))
    other.request(other.run_claim("other/run"), ticket=True, probed=True).step()
    rescheduled()
    assert labels(other, "waiters") == ["airflow/tests dag/run"]


def test_a_run_whose_tasks_are_rescheduled_is_not_held_back(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have no place that outlives the worker, and its five minutes would begin anew at each look."""
    settle(monkeypatch, replace(here, waiting="reschedule"))
    other.acquire(other.claim("narrow", run_id="other/run", op_id="first"))
    begun = context()
    begun["dag"].tasks = [begun["task"]]
    with pytest.raises(airflow_versions.exception("AirflowRescheduleException")):
        gate.enter(begun)
    assert labels(other, "waiters") == ["airflow/tests dag/run task"]


def test_a_blocked_task_waits_in_the_worker(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    settle(monkeypatch, replace(here, waiting_by_pool=(("narrow", "block"),)))
    lease = other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    threading.Timer(1.0, lease.release).start()
    gate.enter(context("second"))
    assert "airflow/tests dag/run second" in labels(other, "leases")
    assert "place 1 in the queue" in caplog.text


@pytest.mark.parametrize("ended", ["airflow/tests dag/run", "airflow/tests dag/run second"])
def test_a_task_whose_claim_somebody_ended_claims_again_from_the_run_on(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ended: str
) -> None:
    """After the run's lease had been freed under it, a waiting task failed: "its run has no lease"."""
    settle(monkeypatch, replace(here, waiting="block"))
    lease = other.acquire(other.claim("narrow", run_id="other", op_id="first"))

    def interfere() -> None:
        while not other.status()["waiters"]:
            time.sleep(0.05)
        for row in other.status()["leases"] + other.status()["waiters"]:
            if row["label"] == ended:
                other.store.end(row["claim_id"], reason="by hand")
        while "claiming again" not in caplog.text:
            time.sleep(0.05)
        lease.release()

    meddler = threading.Thread(target=interfere)
    meddler.start()
    gate.enter(context("second"))
    meddler.join()
    assert labels(other, "leases") == ["airflow/tests dag/run", "airflow/tests dag/run second"]


def test_the_pools_of_a_task_do_not_say_how_it_waits_for_its_run(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool for whose slots one waits in the worker, for a moment, kept the worker while the run waited for hours."""
    settle(monkeypatch, replace(here, waiting_by_pool=(("narrow", "block"),)))
    other.request(other.run_claim("other/run"), ticket=True, probed=True).step()
    assert [claim.op_id for claim in claims_of(deferral())] == [None, "task"]


def test_where_tasks_run_in_the_scheduling_process_nothing_else_but_to_block_is_possible(
    other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`airflow dags test` has neither triggerer nor scheduler: a deferred task of the gate's would never come back."""
    monkeypatch.setattr(compatibility, "in_one_process", lambda: True)
    lease = other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    threading.Timer(1.0, lease.release).start()
    gate.enter(context("second"))
    assert "airflow/tests dag/run second" in labels(other, "leases")


@pytest.mark.parametrize(("runs", "defers"), [(True, True), (None, True), (False, False)])
def test_without_a_triggerer_the_task_is_rescheduled(
    other: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    runs: bool | None,
    defers: bool,
) -> None:
    monkeypatch.setattr(asking, "triggerer_runs", lambda: runs)
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    (deferral if defers else rescheduled)(task_id="second")
    assert ("no triggerer runs" in caplog.text) is not defers


def test_an_operator_that_comes_back_from_its_own_deferral_is_never_rescheduled(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow forgets on a reschedule where a deferred operator was to go on: it would start from the beginning."""
    monkeypatch.setattr(asking, "triggerer_runs", lambda: False)
    settle(monkeypatch, replace(here, waiting="reschedule"))
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    coming_back = context("second")
    coming_back["ti"]._ti_context_from_server = SimpleNamespace(next_method="finish", next_kwargs={"job": 7})
    with pytest.raises(airflow_versions.exception("TaskDeferred")) as caught:
        gate.enter(coming_back)
    assert caught.value.kwargs["method"] == "finish"
    assert json.loads(caught.value.kwargs["arguments"]) == {"job": 7}


# -- when there is no room -------------------------------------------------------------------------------------------


def test_a_task_that_does_not_wait_is_skipped_or_fails(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    why = "airflow/tests dag/run second: narrow: 1 of 1 held by airflow/tests dag/run first"
    said(monkeypatch, on_blocked="skip")
    with pytest.raises(airflow_versions.exception("AirflowSkipException"), match=why):
        gate.enter(context("second"))
    said(monkeypatch, on_blocked="fail")
    with pytest.raises(Blocked, match=why):
        gate.enter(context("second"))
    assert not other.status()["waiters"]
    assert not other.status()["sessions"][1:], "the worker's session is closed"


def test_a_skipped_run_is_skipped_by_each_of_its_tasks(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, run=RunLimits(on_blocked="skip"))
    request = other.request(other.run_claim("other/run"), ticket=True, probed=True)
    assert isinstance(request.step(), Granted)
    skip = airflow_versions.exception("AirflowSkipException")
    with pytest.raises(skip, match=r"runs: 1 of 1 held by airflow/tests other/run"):
        gate.enter(context("first"))
    other.end_run("other/run")
    with pytest.raises(skip, match="its run was skipped, and stays so"):
        gate.enter(context("second"))
    assert not labels(other, "leases")


def test_a_run_that_does_not_wait_fails_its_tasks(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, run=RunLimits(on_blocked="fail"))
    other.request(other.run_claim("other/run"), ticket=True, probed=True).step()
    with pytest.raises(Blocked, match=r"runs: 1 of 1 held"):
        gate.enter(context("first"))
    assert not other.status()["waiters"]


def test_a_run_that_a_user_ended_bars_no_run_that_does_not_wait(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits then, so that nobody else asks: each run was skipped for a day."""
    said(monkeypatch, run=RunLimits(on_blocked="skip"))
    other.request(other.run_claim("over/run"), ticket=True, probed=True).step()
    monkeypatch.setattr(runs, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(asking, "run_is_alive_here", lambda dag_id, _: dag_id != "over")
    gate.enter(context())
    assert labels(other, "leases") == ["airflow/tests dag/run", "airflow/tests dag/run task"]


def test_a_task_that_waits_in_its_worker_asks_after_runs_that_a_user_ended(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is deferred then, so that nobody else asks: it waited for a day."""
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    settle(monkeypatch, replace(here, waiting="block"))
    other.request(other.run_claim("over/run"), ticket=True, probed=True).step()
    monkeypatch.setattr(runs, "ASK_SECONDS", 0.6)
    asked: list[float] = []

    def run_is_alive(*_: str) -> bool:
        asked.append(time.monotonic())
        return len(asked) < 2

    monkeypatch.setattr(asking, "run_is_alive_here", run_is_alive)
    gate.enter(context())
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 0.6, "the first answer counts for a while, for all who wait"
    assert labels(other, "leases") == ["airflow/tests dag/run", "airflow/tests dag/run task"]
    assert caplog.text.count("dag/run waits:") == 1


def test_a_deferred_task_keeps_the_place_of_its_run_in_a_pool_that_the_dag_does_not_tell(
    other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run went to the end of that pool's queue."""
    changes.apply(
        other,
        Concurrency.from_document({"pools": {"limits": {"rooms": {"limit": 1, "granularity": "run"}}}}),
        expected_version=1,
    )
    first, later = (other.request(other.run_claim(f"{name}/run"), ticket=True, probed=True) for name in ("1st", "2nd"))
    first.step()
    later.step()
    other.acquire(other.claim("rooms", run_id="1st/run", op_id="holds", in_run=True))
    said(monkeypatch, pools={"rooms": 1})
    deferred = deferral()
    overtaking = other.request(other.claim("rooms", run_id="2nd/run", op_id="task", in_run=True))
    overtaking.step()
    waiters = other.status()["waiters"]
    assert [row["run_id"] for row in waiters] == ["dag/run", "2nd/run"]
    other.end_run("1st/run")
    assert not isinstance(overtaking.step(), Granted)
    _, op = claims_of(deferred)
    assert isinstance(other.request(op, ticket=True).step(), Granted)


@pytest.mark.parametrize(
    ("conf", "pools", "wrong"),
    [
        ({"penstock": {"max_concurent": 1}}, (), "is 'max_concurrent' meant"),
        ({"penstock": {"max_concurrent": "many"}}, (), "max_concurrent"),
        ({}, ("{{ nothing.there }}",), "cannot be rendered"),
        ({}, ("{{ 'two words' }}",), "whitespace"),
    ],
)
def test_what_is_wrong_at_each_try_is_tried_once(
    other: Engine, conf: dict[str, Any], pools: tuple[str, ...], wrong: str
) -> None:
    """It used up the task's retries."""
    facing = context()
    facing["dag_run"] = SimpleNamespace(conf=conf)
    facing["task"].get_template_env = lambda _: jinja2.Environment(undefined=jinja2.StrictUndefined)
    setattr(facing["task"], limits.MARK, Said(pools=pools))
    with pytest.raises(airflow_versions.exception("AirflowFailException"), match=f"{wrong}.*it is not retried"):
        gate.enter(facing)
    assert not other.status()["waiters"]


def test_a_time_out_counts_from_the_beginning_of_the_wait(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, wait_timeout_seconds=30.0)
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    deferred = deferral(task_id="second")
    assert deferred.trigger.until - time.time() == pytest.approx(30.0, abs=1.0)
    assert deferred.timeout.total_seconds() == pytest.approx(30.0 + gate.TIMEOUT_MARGIN_SECONDS, abs=1.0)
    late = {**deferred.kwargs, "since": time.time() - 31.0}
    with pytest.raises(WaitTimeout, match=r"no slot within 30 s \(narrow: 1 of 1 held by airflow/tests dag/run first"):
        gate.enter(context("second", next_kwargs=late))
    assert not other.status()["waiters"]


def test_a_task_that_waits_for_its_run_times_out_and_leaves_the_runs_place_to_others(
    other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, wait_timeout_seconds=0.1)
    other.request(other.run_claim("other/run"), ticket=True, probed=True).step()
    with pytest.raises(WaitTimeout, match=r"not granted within 0\.1 s \(runs: 1 of 1 held"):
        gate.enter(context())
    assert labels(other, "waiters") == ["airflow/tests dag/run"]


def test_a_run_that_has_waited_for_too_long_fails_its_task(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, run=RunLimits(wait_timeout_seconds=0.1))
    other.request(other.run_claim("other/run"), ticket=True, probed=True).step()
    with pytest.raises(WaitTimeout, match=r"no slot within 0\.1 s \(runs: 1 of 1 held"):
        gate.enter(context())
    assert not other.status()["waiters"]


# -- what an installation says of itself -----------------------------------------------------------------------------


def test_who_only_observes_does_not_wait_and_says_so(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock")
    settle(monkeypatch, replace(here, enforcement="observe"))
    other.acquire(other.claim("narrow", run_id="dag/run", op_id="first"))
    gate.enter(context("second"))
    assert "would have waited for pool:narrow: this installation only observes" in caplog.text
    assert len(labels(other, "leases")) == 3
    holding.leave()


def test_with_enforcement_off_the_store_is_not_asked(
    here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    settle(monkeypatch, replace(here, enforcement="off"))
    monkeypatch.setattr(gate, "engine", away)
    gate.enter(context())
    assert "enforcement is off" in caplog.text
    holding.leave()


def test_setup_and_teardown_are_exempt_where_that_is_said(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = context("setup")
    setup["task"].is_setup = True
    gate.enter(setup)
    assert "airflow/tests dag/run setup" in labels(other, "leases")
    holding.leave()
    settle(monkeypatch, replace(here, exempt_setup_teardown=True))
    for what in ("is_setup", "is_teardown"):
        exempt = context("exempt")
        setattr(exempt["task"], what, True)
        gate.enter(exempt)
    assert "airflow/tests dag/run exempt" not in labels(other, "leases")


def test_a_second_installation_of_the_same_name_is_refused(other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "own_url", lambda: "http://one.example")
    gate.enter(context())
    holding.leave()
    monkeypatch.setattr(installation, "_engines", {})
    monkeypatch.setattr(asking, "own_url", lambda: "http://two.example")
    with pytest.raises(DeploymentConflict, match=r"http://one\.example already, this is http://two\.example"):
        gate.enter(context())


@pytest.mark.parametrize(
    ("shown", "execution", "url"),
    [
        (None, None, None),
        ("http://localhost:8080", None, None),
        ("/", None, None),
        ("https://airflow.example/", None, "https://airflow.example"),
        ("https://airflow.example", "http://api:8080/execution/", "https://airflow.example"),
        ("http://localhost:8080/", "http://api:8080/team/execution/", "http://api:8080/team"),
    ],
)
def test_an_installation_is_told_by_its_url_unless_every_one_has_it(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, execution: str | None, url: str | None
) -> None:
    given = {"base_url": shown, "execution_api_server_url": execution}
    conf = SimpleNamespace(get=lambda _, option, fallback=None: given[option] or fallback)
    monkeypatch.setattr(compatibility, "configuration", lambda: conf)
    assert asking.own_url() == url


def test_a_store_that_is_away_fails_the_task_at_once_where_that_is_said(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch, replace(here, on_store_error="fail", store_retry_seconds=600.0))
    monkeypatch.setattr(SqlStore, "configuration", away)
    with pytest.raises(StoreUnavailable, match="nobody answers"):
        gate.enter(context())


@pytest.mark.parametrize("call", ["acquire", "configuration"])
def test_a_task_may_run_without_limits_while_the_store_is_away_but_not_in_silence(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    settle(monkeypatch, replace(here, on_store_error="run", store_retry_seconds=600.0))
    monkeypatch.setattr(SqlStore, call, away)
    marks: dict[str, str] = {}
    running = context()
    running["ti"].xcom_push = lambda key, value: marks.update({key: value})
    gate.enter(running)
    assert "this task runs WITHOUT LIMITS" in caplog.text
    assert "WITHOUT LIMITS" in marks["penstock"]
    holding.leave()


def test_a_trigger_that_gave_up_on_the_store_fails_the_task_with_its_words(other: Engine) -> None:
    back = {"since": time.time(), "event": {"claims": [], "store_error": "nobody answered for 600 s"}}
    with pytest.raises(StoreUnavailable, match="nobody answered for 600 s"):
        gate.enter(context(next_kwargs=back))


# -- an operator that defers by itself -------------------------------------------------------------------------------


def own_deferral(after_seconds: float = 60.0) -> Any:
    from datetime import timedelta

    from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

    deferral = airflow_versions.exception("TaskDeferred")
    return deferral(trigger=TimeDeltaTrigger(timedelta(seconds=after_seconds)), method_name="finish")


def test_slots_are_held_while_the_operator_is_deferred_and_taken_over_when_it_is_back(other: Engine) -> None:
    gate.enter(context())
    deferred = own_deferral()
    inner = deferred.trigger
    holding.leave(deferred)
    assert "airflow/tests dag/run task" in labels(other, "leases")
    assert not other.status()["sessions"][1:], "the worker's session is closed"
    path, kwargs = deferred.trigger.serialize()
    assert path == "penstock_airflow.trigger.HoldingTrigger"
    assert kwargs["moment"] == inner.moment
    back = context()
    back["ti"]._ti_context_from_server = SimpleNamespace(next_method="finish", next_kwargs={})
    gate.enter(back)
    holding.leave()
    assert labels(other, "leases") == ["airflow/tests dag/run"]


@pytest.mark.parametrize("arrives", [False, True])
def test_slots_are_held_though_the_store_is_away_for_a_moment(
    other: Engine, monkeypatch: pytest.MonkeyPatch, *, arrives: bool
) -> None:
    """As in a failover; where the first try arrived, only its answer was lost."""
    gate.enter(context())
    hand_over, tries = SqlStore.hand_over, iter([1])

    def once_away(*asked: Any, **more: Any) -> bool:
        if next(tries, None) is None:
            return hand_over(*asked, **more)
        if arrives:
            hand_over(*asked, **more)
        return away()

    monkeypatch.setattr(SqlStore, "hand_over", once_away)
    deferred = own_deferral()
    holding.leave(deferred)
    assert isinstance(deferred.trigger, HoldingTrigger)
    assert not other.status()["sessions"][1:], "the worker's session is closed"
    (held,) = [row for row in other.store.snapshot().claims if row.claim.op_id == "task"]
    assert held.claim.claim_id == json.loads(deferred.trigger._claim)["claim_id"]
    assert (len(held.slots), held.session_ids) == (1, ()), "a ticket, behind which no process stands"


def test_where_the_store_stays_away_the_log_says_that_the_job_goes_on_without_slots(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settle(monkeypatch, replace(here, session_ttl_seconds=1.0))
    gate.enter(context())
    deferred = own_deferral()
    inner = deferred.trigger
    with monkeypatch.context() as outage:
        outage.setattr(SqlStore, "hand_over", away)
        holding.leave(deferred)
    assert deferred.trigger is inner
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "airflow/tests dag/run task cannot keep its slots while it is deferred" in told
    assert "the job that it waits for goes on without them from when they expire, in 4 s at most" in told
    assert "end it and clear the task" in told


def test_slots_of_a_pool_that_says_so_are_given_back_meanwhile(
    other: Engine, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch, replace(here, release_while_deferred=("nar*",)))
    gate.enter(context())
    deferred = own_deferral()
    inner = deferred.trigger
    holding.leave(deferred)
    assert labels(other, "leases") == ["airflow/tests dag/run"]
    assert deferred.trigger is inner


def test_what_is_no_deferral_gives_the_slots_back(other: Engine) -> None:
    gate.enter(context())
    holding.leave(ValueError("the task failed"))
    assert labels(other, "leases") == ["airflow/tests dag/run"]


def test_a_trigger_that_cannot_be_made_again_keeps_no_slots(other: Engine, caplog: pytest.LogCaptureFixture) -> None:
    gate.enter(context())
    deferred = own_deferral()
    deferred.trigger = SimpleNamespace(serialize=lambda: ("nowhere.Trigger", {}))
    holding.leave(deferred)
    assert labels(other, "leases") == ["airflow/tests dag/run"]
    assert "cannot be made again" in caplog.text


def test_a_task_that_only_fails_gives_up_what_its_trigger_held(other: Engine) -> None:
    gate.enter(context())
    holding.leave(own_deferral())
    failing = context()
    failing["ti"]._ti_context_from_server = SimpleNamespace(next_method=compatibility.FAIL_METHOD, next_kwargs={})
    gate.enter(failing)
    assert labels(other, "leases") == ["airflow/tests dag/run"]
