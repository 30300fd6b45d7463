"""What the doctor says of this Prefect: all its parts on a real server, and each that is not sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from penstock.demo.prefect_host import PrefectHost
from penstock.diagnosis import State
from penstock_prefect import diagnosis
from prefect.settings import PREFECT_API_URL, temporary_settings

PREFIX = diagnosis.PREFIX


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(f"{PREFIX}STORE_URL", "sqlite:////srv/penstock.db")
    with temporary_settings({PREFECT_API_URL: None}):
        yield


def parts() -> dict[str, Any]:
    return {part.name.removeprefix("prefect "): part for part in diagnosis.parts()}


def test_a_command_in_the_hosts_environment_names_each(host: PrefectHost) -> None:
    """By `penstock doctor`, from a process of its own."""
    host.create_work_pool("doctors", diagnosis.WORKER_TYPE)
    script = (
        "import json; from penstock.diagnosis import hosts; "
        "print(json.dumps([part.as_dict() for part in hosts.prefect()]))"
    )
    found = {one["part"]: one for one in json.loads(host.run_python("-c", script).splitlines()[-1])}
    httpx.delete(f"{host.api_url}/work_pools/doctors").raise_for_status()  # the page shows a server without one
    assert [*found] == [
        "prefect",
        *(f"prefect {n}" for n in ("API", "collection", "settings", "block", "worker type", "work pools")),
    ]
    states = {name: one["state"] for name, one in found.items()}
    assert states.pop("prefect block") == "inactive"
    assert set(states.values()) == {"ok"}, found
    assert "doctors" in found["prefect work pools"]["facts"]["names"]
    assert found["prefect settings"]["facts"]["store_from"] == "store_url"


def test_without_an_api_or_with_one_that_is_away() -> None:
    found = parts()
    assert (found["API"].state, found["work pools"].state) == (State.WARNING, State.INACTIVE)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        found = parts()
    assert (found["API"].state, found["work pools"].state) == (State.FAULT, State.WARNING)


@pytest.mark.parametrize(
    ("variable", "value", "state", "detail", "remedy"),
    [
        ("ENFORCEMENT", "sometimes", State.FAULT, f"{PREFIX}ENFORCEMENT: ", "correct it wherever flows run"),
        ("ENFORCEMENT", "observe", State.WARNING, "deployment prefect, the store from store_url, enforcement obs", ""),
        ("STORE_URI", "x", State.WARNING, f"{PREFIX}STORE_URI is no setting of", f"did you mean {PREFIX}STORE_URL?"),
        ("STORE_URL", "", State.INACTIVE, "deployment prefect, the store from nowhere", f"set {PREFIX}STORE_URL"),
    ],
)
def test_settings_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, state: State, detail: str, remedy: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}{variable}", value)
    found = parts()["settings"]
    assert found.state is state
    assert found.detail.startswith(detail)
    assert (found.remedy or "").startswith(remedy)


def test_a_block_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, host: PrefectHost) -> None:
    monkeypatch.setenv(f"{PREFIX}STORE_BLOCK", "nowhere")
    assert parts()["block"].state is State.INACTIVE  # the URL counts
    monkeypatch.setenv(f"{PREFIX}STORE_URL", "")
    with temporary_settings({PREFECT_API_URL: host.api_url}):
        found = parts()
    assert found["block"].state is State.FAULT
    assert "Prefect has no block penstock-store/nowhere" in found["block"].detail
    assert found["settings"].facts["store_from"] == "the block nowhere"


def test_what_cannot_be_loaded_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no module x")

    monkeypatch.setattr(diagnosis, "load_prefect_collections", broken)
    monkeypatch.setattr(diagnosis.BaseWorker, "get_worker_class_from_type", lambda _: None)
    found = parts()
    assert len(found) == 6
    assert found["collection"].detail == "cannot be looked at: RuntimeError: no module x"
    assert found["worker type"].state is State.FAULT
    monkeypatch.setattr(diagnosis, "load_prefect_collections", lambda: {"penstock": ImportError("x")})
    assert parts()["collection"].detail == "Prefect cannot load it: x"
    monkeypatch.setattr(diagnosis, "load_prefect_collections", dict)
    assert parts()["collection"].state is State.FAULT
