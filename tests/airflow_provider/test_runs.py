"""The end of a run, told by Airflow or asked for: without an Airflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock import connect
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.store.contract import ClaimRow
from penstock_airflow import asking, compatibility, installation, runs
from penstock_airflow.installation import Installation


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    here = Installation(store_url=url, deployment="tests")
    monkeypatch.setattr(installation, "installation", lambda: here)
    with connect(url, host="airflow", deployment="tests") as engine:
        monkeypatch.setattr(installation, "engine", lambda: engine)
        monkeypatch.setattr(runs, "_patience", runs._Patience())
        yield engine


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The triggerer's answers about runs; `asked` are those that Airflow was asked about."""
    asked: list[str] = []
    alive = {"dag/lives": True, "dag/over": False}

    def answer(dag_id: str, dag_run_id: str) -> bool:
        asked.append(f"{dag_id}/{dag_run_id}")
        return alive[asked[-1]]

    monkeypatch.setattr(asking, "run_is_alive", answer)
    monkeypatch.setattr(asking, "run_is_alive_here", answer)
    probe = runs._Probe()
    return SimpleNamespace(of=probe.penstock_holder_alive, asked=asked)


def lease(engine: Engine, run_id: str, *, seconds_ago: float = 3600.0) -> ClaimRow:
    decision = engine.request(engine.run_claim(run_id), ticket=True, probed=True).step()
    assert isinstance(decision, Granted)
    (row,) = [row for row in engine.snapshot().claims if row.claim.run_id == run_id]
    return replace(row, granted_at=int((time.time() - seconds_ago) * 1_000_000))


def test_the_end_of_a_run_frees_its_lease(engine: Engine) -> None:
    lease(engine, "dag/run")
    context = {"dag": SimpleNamespace(dag_id="dag"), "run_id": "run"}
    runs.end(context)
    assert not engine.status()["leases"]
    runs.end(context)


def told_of(run_id: str, ended_at: float | None) -> dict[str, Any]:
    """The context of a callback, as the dag-processor makes it."""
    context: dict[str, Any] = {"dag": SimpleNamespace(dag_id="dag"), "run_id": run_id}
    if ended_at is not None:
        context["dag_run"] = SimpleNamespace(end_date=datetime.fromtimestamp(ended_at, UTC))
    return context


def test_a_late_word_of_a_runs_end_does_not_end_the_run_that_was_cleared(engine: Engine) -> None:
    """A run too many could begin while its tasks went on without its lease."""
    lease(engine, "dag/run")
    runs.end(told_of("run", time.time() - 60.0))
    assert [row["run_id"] for row in engine.status()["leases"]] == ["dag/run"]
    runs.end(told_of("run", time.time() + 0.01))
    assert not engine.status()["leases"]


def test_all_callbacks_of_a_file_have_one_patience_with_a_store_that_is_away(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each had its own: the dag-processor ended the file's process before it came to the user's callbacks."""
    monkeypatch.setattr(runs, "PATIENCE_SECONDS", 0.5)
    tries: list[float] = []

    def away() -> Engine:
        tries.append(time.monotonic())
        raise StoreUnavailable("nobody answers")

    with monkeypatch.context() as outage:
        outage.setattr(installation, "engine", away)
        began = time.monotonic()
        for number in range(20):
            with pytest.raises(StoreUnavailable):
                runs.end(told_of(f"run_{number}", None))
        assert time.monotonic() - began < 5 * runs.PATIENCE_SECONDS
        assert tries
    lease(engine, "dag/run")
    with pytest.raises(StoreUnavailable, match="comes back when Airflow is asked"):
        runs.end(told_of("run", None))
    monkeypatch.setattr(runs, "ONE_FILE_SECONDS", 0.0)
    runs.end(told_of("run", None))
    assert not engine.status()["leases"]


def test_airflow_is_asked_whether_a_run_lives(engine: Engine, probe: Any) -> None:
    assert probe.of(claim=lease(engine, "dag/lives")) is True
    assert probe.of(claim=lease(engine, "dag/over")) is False


def test_a_run_is_not_asked_about_before_it_has_lasted_nor_all_the_time(engine: Engine, probe: Any) -> None:
    """Most runs are told of by callbacks, and a question is dear: the triggerer then loads the whole API server."""
    assert probe.of(claim=lease(engine, "dag/lives", seconds_ago=1.0)) is None
    assert not probe.asked
    old = lease(engine, "dag/over")
    assert probe.of(claim=old) is False
    assert probe.of(claim=old) is None
    assert probe.asked == ["dag/over"]


def test_others_runs_are_not_asked_about(engine: Engine, probe: Any) -> None:
    row = lease(engine, "dag/over")
    assert probe.of(claim=replace(row, claim=replace(row.claim, deployment="other"))) is None
    assert probe.of(claim=replace(row, claim=replace(row.claim, host="prefect"))) is None
    assert not probe.asked


def test_a_question_without_an_answer_frees_nothing(
    engine: Engine, probe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert probe.of(claim=lease(engine, "dag/unknown")) is None
    assert "does not say whether dag/unknown is over" in caplog.text


def test_a_task_that_waits_for_a_run_slot_outside_of_the_triggerer_asks_itself(
    engine: Engine, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a waiting trigger nobody asked, and a run that a user had ended by hand kept its slot for a day."""
    lease(engine, "dag/lives")
    lease(engine, "dag/over")
    assert runs.end_those_over(engine) == 0
    assert not probe.asked, "they have only just begun"
    monkeypatch.setattr(runs, "ASK_SECONDS", -1.0)
    assert runs.end_those_over(engine) == 1
    assert [row["run_id"] for row in engine.status()["leases"]] == ["dag/lives"]


def test_a_store_that_is_away_in_the_middle_of_the_question_fails_no_task(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise StoreUnavailable("nobody answers")

    monkeypatch.setattr(engine.store, "probed", away)
    assert runs.end_those_over(engine) == 0
    assert "could not be looked for: nobody answers" in caplog.text


def test_tasks_that_run_in_the_scheduling_process_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`airflow dags test` has nobody who could answer a question from another thread."""
    registered: list[object] = []
    plugins = SimpleNamespace(has_plugin=lambda _: False, register=lambda plugin, _: registered.append(plugin))
    monkeypatch.setattr(runs, "installed_plugins", lambda: plugins)
    monkeypatch.setattr(compatibility, "in_one_process", lambda: True)
    runs.watch()
    assert not registered
    monkeypatch.setattr(compatibility, "in_one_process", lambda: False)
    runs.watch()
    assert registered
