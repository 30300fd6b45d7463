"""What the doctor says of an Airflow's parts that are not sound; that all are found is shown on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from penstock.diagnosis import State
from penstock_airflow import asking, compatibility, diagnosis, installation, page
from penstock_airflow.asking import Triggerers


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(asking, "own_url", lambda: "https://airflow.example")
    monkeypatch.setenv("AIRFLOW__PENSTOCK__STORE_URL", "sqlite:////srv/penstock.db")
    monkeypatch.setattr(asking, "triggerers", lambda: Triggerers(1, 1000))
    installation.store_is_configured.cache_clear()
    yield
    installation.store_is_configured.cache_clear()


def parts() -> dict[str, Any]:
    return {part.name.removeprefix("airflow "): part for part in diagnosis.parts()}


def test_all_are_found() -> None:
    found = parts()
    assert {name: part.state for name, part in found.items()} == dict.fromkeys(found, State.OK)
    assert len(found) == 10


@pytest.mark.parametrize(
    ("name", "answer", "part", "state", "detail"),
    [
        ("policies", set(), "policy", State.FAULT, "Airflow does not call it: no task is limited"),
        ("own_url", None, "installation", State.WARNING, "has no URL of its own: another one under its name on this"),
        ("knows_task_runner", False, "task runner", State.WARNING, "not known to this Penstock"),
        ("loaded_plugins", (set(), {}), "plugin", State.WARNING, "not loaded (Airflow does not find it)"),
        (
            "loaded_plugins",
            (set(), {"penstock_airflow.plugin": "no module x"}),
            "plugin",
            State.WARNING,
            "not loaded (no module x)",
        ),
        ("mounted", {"/other"}, "page", State.WARNING, "not mounted: Airflow has not loaded it"),
        ("missing", ["jinja2"], "page", State.WARNING, "not in the menu: jinja2 cannot be imported"),
        (
            "triggerers",
            Triggerers(0, 0),
            "triggerer",
            State.WARNING,
            "none is running: tasks that have to wait are resched",
        ),
        (
            "triggerers",
            Triggerers(1, 1000, triggers=1200, waiting=900, unassigned=200),
            "triggerer",
            State.WARNING,
            "200 tasks wait for slots in no triggerer, and are granted nothing; 1 running, with room for 1000 of 1200",
        ),
    ],
)
def test_what_is_not_sound(
    monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, part: str, state: State, detail: str
) -> None:
    asked = next(module for module in (asking, page, compatibility) if hasattr(module, name))
    monkeypatch.setattr(asked, name, lambda: answer)
    found = parts()[part]
    assert (found.state, found.detail[: len(detail)]) == (state, detail)
    assert found.remedy


def test_what_runs_outside_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SDK__QUEUE_TO_COORDINATOR", '{"java": "jdk-17", "go": "go-sdk"}')
    found = parts()["policy"]
    assert found.state is State.WARNING
    assert "tasks of the queue go, java ([sdk] queue_to_coordinator) are not limited" in found.detail
    assert found.remedy is not None
    assert "Airflow's own pools" in found.remedy
    monkeypatch.setenv("AIRFLOW__SDK__QUEUE_TO_COORDINATOR", "{}")
    assert parts()["policy"].state is State.OK


def test_no_triggerer_is_needed_where_nobody_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "triggerers", lambda: Triggerers(0, 0))
    monkeypatch.setenv("AIRFLOW__PENSTOCK__WAITING", "block")
    assert parts()["triggerer"].state is State.INACTIVE


def test_what_cannot_be_looked_at_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no database here")

    monkeypatch.setattr(compatibility, "policies", broken)
    monkeypatch.setattr(asking, "triggerers", broken)
    found = parts()
    assert len(found) == 10
    assert (found["policy"].state, found["policy"].detail) == (
        State.FAULT,
        "cannot be looked at: RuntimeError: no database here",
    )
    assert found["triggerer"].state is State.WARNING
    assert "cannot be seen from here" in found["triggerer"].detail


@pytest.mark.parametrize(
    ("option", "value", "state", "detail", "remedy"),
    [
        ("waiting", "sit", State.FAULT, "[penstock] waiting: 'sit': one of defer", "correct it for every component"),
        ("short_block_second", "3", State.WARNING, "[penstock] short_block_second is no setting", "did you mean short"),
        (
            "enforcement",
            "observe",
            State.WARNING,
            "deployment airflow, the store from store_url, enforcement observe",
            "",
        ),
    ],
)
def test_settings_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str, state: State, detail: str, remedy: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW__PENSTOCK__{option.upper()}", value)
    found = parts()["settings"]
    assert found.state is state
    assert found.detail.startswith(detail)
    assert (found.remedy or "").startswith(remedy)


def test_without_a_store_it_is_inactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__PENSTOCK__STORE_URL")
    monkeypatch.setattr(asking, "triggerers", lambda: Triggerers(0, 0))
    found = parts()
    assert (found["policy"].state, found["triggerer"].state) == (State.INACTIVE, State.INACTIVE)


def test_a_page_that_is_switched_off_is_inactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__PENSTOCK__PAGE", "False")
    assert (parts()["page"].state, parts()["page"].detail) == (State.INACTIVE, "switched off by [penstock] page")
    monkeypatch.setenv("AIRFLOW__PENSTOCK__PAGE", "perhaps")
    assert parts()["page"].state is State.FAULT
    assert "[penstock] page: 'perhaps' found; True or False is expected" in parts()["page"].detail
