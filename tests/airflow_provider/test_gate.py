"""The gate on a real store with a made-up task context: what runs, what waits, and that nothing runs unlimited."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import airflow_versions
import pytest
from penstock import changes
from penstock.claim import Claim
from penstock.config import Concurrency
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import ConfigError, ImpossibleClaim, SchemaMismatch, StoreUnavailable
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from penstock_airflow import compatibility, gate, installation
from penstock_airflow.installation import Installation

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
    monkeypatch.setattr(gate, "_held", [])
    monkeypatch.setattr(compatibility, "triggerer_runs", lambda: None)
    settle(monkeypatch, settings)
    yield settings
    for engine in installation._engines.values():
        engine.close()


def settle(monkeypatch: pytest.MonkeyPatch, settings: Installation) -> None:
    """Have this process work under these settings from now on."""
    monkeypatch.setattr(installation, "installation", lambda: settings)
    monkeypatch.setattr(gate, "installation", lambda: settings)


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
    gate.leave()
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
        gate.leave()
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
        gate.leave()
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
