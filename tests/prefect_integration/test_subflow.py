"""Tasks in the process pool of a subflow that is under no limits itself: they stand under the run around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from penstock.engine import Engine
from penstock_prefect import asking, facts, gate, installation
from penstock_prefect.claims import NOWHERE

ROOT, MIDDLE, INNER = (
    SimpleNamespace(id="root", parent_task_run_id=None, deployment_id="deployed"),
    SimpleNamespace(id="middle", parent_task_run_id="task of root", deployment_id=None),
    SimpleNamespace(id="inner", parent_task_run_id="task of middle", deployment_id=None),
)


class Api:
    """Prefect's: `inner` is a subflow of `middle`, and that of `root`."""

    def read_task_run(self, task_run_id: str) -> Any:
        return SimpleNamespace(flow_run_id=task_run_id.removeprefix("task of "))

    def read_flow_run(self, flow_run_id: str) -> Any:
        return {"root": ROOT, "middle": MIDDLE}[flow_run_id]


@pytest.fixture(autouse=True)
def in_a_process_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def client() -> Iterator[Api]:
        yield Api()

    monkeypatch.setattr(asking, "client", client)
    monkeypatch.setattr(facts, "is_elsewhere", lambda: True)
    monkeypatch.setattr(facts, "flow_run_around", lambda: INNER)
    monkeypatch.setattr(gate, "_subflows", {})


def own_engine() -> Engine:
    own = installation.engine()
    assert own is not None
    return own


def test_they_find_what_the_run_holds(local_engine: Engine) -> None:
    own = own_engine()
    with own.acquire(own.run_claim("root", "single", priority=4)) as lease:
        found = gate._outer(own)
    assert (found.run_id, found.run_claim_id, found.priority) == ("root", lease.claim_id, 4)
    assert found.run_pools == {"single": 1}


def test_without_a_run_under_limits_they_stand_alone(local_engine: Engine) -> None:
    assert gate._outer(own_engine()) is NOWHERE


def test_a_run_of_a_deployment_is_one_of_its_own(local_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "flow_run_around", lambda: SimpleNamespace(**{**vars(INNER), "deployment_id": "one"}))
    own = own_engine()
    with own.acquire(own.run_claim("root", "single")):
        assert gate._outer(own) is NOWHERE


def test_an_api_that_is_away_makes_nothing_fail(
    local_engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_flow_run: Any) -> Any:
        raise httpx.ConnectError("the API is away")

    monkeypatch.setattr(asking, "runs_around", away)
    assert gate._outer(own_engine()) is NOWHERE
