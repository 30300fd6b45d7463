"""What becomes of the slots of a suspended run. No server here; test_liveness.py suspends real ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from penstock.engine import Engine
from penstock_prefect import asking, gate, installation, probing
from penstock_prefect.claims import NOWHERE, FlowFacts, Limits, run_claim
from penstock_prefect.passage import Passage
from penstock_prefect.settings import settings
from prefect.exceptions import Pause
from prefect.states import Paused, Running, Scheduled, Suspended
from prefect_runs import held

SETTING = "PREFECT_INTEGRATIONS_PENSTOCK_HOLD_WHILE_SUSPENDED"


@pytest.mark.parametrize(
    ("patterns", "pools", "holds"),
    [
        (None, ["single"], False),
        (None, [], False),
        ("single", ["single"], True),
        ("sing*, database", ["single", "database"], True),
        ("single", ["single", "database"], False),
        ("*", [], True),
        ("single", [], False),
    ],
)
def test_a_run_is_held_as_a_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, patterns: str | None, pools: list[str], holds: bool
) -> None:
    if patterns is not None:
        monkeypatch.setenv(SETTING, patterns)
    assert settings().holds_while_suspended(pools) is holds


class Api:
    def __init__(self, state: Any, run_count: int) -> None:
        self.run = SimpleNamespace(state=state, run_count=run_count)

    def read_flow_run(self, _flow_run_id: str) -> Any:
        return self.run


@pytest.mark.parametrize(
    ("state", "run_count", "alive", "alive_if_held"),
    [
        (Suspended(timeout_seconds=3600), 1, False, True),
        (Suspended(pause_expiration_time=datetime.now(UTC) - timedelta(seconds=1)), 1, False, False),
        (Scheduled(name="Resuming"), 1, False, True),
        (Scheduled(name="AwaitingConcurrencySlot"), 1, False, False),
        (Paused(timeout_seconds=3600), 1, True, True),
        (Running(), 1, True, True),
    ],
)
def test_what_the_api_says_of_a_run_decides(
    monkeypatch: pytest.MonkeyPatch, state: Any, run_count: int, alive: bool, alive_if_held: bool
) -> None:
    @contextlib.contextmanager
    def client() -> Iterator[Api]:
        yield Api(state, run_count)

    monkeypatch.setattr(asking, "client", client)
    assert probing.attempt_is_alive("1", 1) is alive
    assert probing.attempt_is_alive("1", 1, held_while_suspended=True) is alive_if_held


@pytest.mark.parametrize(("patterns", "slots"), [("single", {"pool:single": 1, "runs": 1}), ("other", {})])
def test_a_flow_leaves_its_lease_to_whoever_resumes_it(
    local_engine: Engine, monkeypatch: pytest.MonkeyPatch, patterns: str, slots: dict[str, int]
) -> None:
    monkeypatch.setenv(SETTING, patterns)
    own = installation.engine()
    assert own is not None
    limits = Limits(pools={"single": 1})
    claimed = run_claim(FlowFacts(flow_run_id="1", flow_name="f"), limits, own.deployment)
    passage = Passage(own, limits, logging.getLogger(), "flow", NOWHERE, lambda _outer: claimed)
    monkeypatch.setattr(gate, "_passage", lambda _limits: passage)
    with pytest.raises(Pause), gate.attempt(limits) as attempt, attempt.applied():
        raise Pause(state=Suspended(timeout_seconds=3600))
    assert held(local_engine) == slots
    rows = [row for row in local_engine.snapshot().claims if row.claim.run_id == "1"]
    assert [(row.probed, row.session_ids) for row in rows] == ([(True, ())] if slots else [])
    again = own.acquire(own.run_claim("1", "single"))
    assert held(local_engine) == {"pool:single": 1, "runs": 1}
    again.release()
    assert held(local_engine) == {}
