"""Which lease an attempt of a run may join, free or end: real stores, no server."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from penstock.connection import connect
from penstock.engine import Engine
from penstock.errors import Blocked, Skipped, StoreUnavailable, WaitTimeout
from penstock_prefect import adoption, asking, ending, facts, gate, installation, probing, tickets
from penstock_prefect.claims import NOWHERE, FlowFacts, Limits
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Crashed, Pending, Running

RUN = "00000000-0000-0000-0000-000000000001"
NewEngine = Callable[[], Engine]


@pytest.fixture
def new_engine(tmp_path: Path) -> Iterator[NewEngine]:
    """Each stands for a process."""
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(connect(f"sqlite:///{tmp_path / 'penstock.db'}", host="prefect", deployment="test"))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is the run's, and has not looked for its lease yet."""
    monkeypatch.setattr(adoption, "_standings", {})
    monkeypatch.setenv(adoption.FLOW_RUN, RUN)
    monkeypatch.delenv(adoption.SESSION, raising=False)


class Api:
    """Prefect's, as far as it is told of a run. `state` None: it does not answer."""

    def __init__(self) -> None:
        self.state: Any = Pending()
        self.lines: list[Any] = []

    def read_flow_run(self, _flow_run_id: str) -> Any:
        if self.state is None:
            raise httpx.ConnectError("the API is away")
        return SimpleNamespace(state=self.state, run_count=0)

    def create_logs(self, lines: list[Any]) -> None:
        self.lines += [(line.level, line.message, str(line.flow_run_id)) for line in lines]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    api = Api()
    monkeypatch.setattr(asking, "client", lambda: nullcontext(api))
    return api


def claim(engine: Engine, attempt: int = 1, *pools: str) -> Any:
    return replace(engine.run_claim(RUN, *pools), attempt=attempt)


def held(engine: Engine) -> list[str]:
    return [row.claim.claim_id for row in engine.snapshot().claims]


def test_an_attempt_does_not_join_one_before_it_that_is_still_alive(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = new_engine(), new_engine()
    lease = older.acquire(claim(older, 1, "licence"))
    assert adoption._once(newer, lambda _: 2) is None
    monkeypatch.setattr(adoption, "_attempt_here", lambda _: 2)
    monkeypatch.setattr(adoption, "PAUSE_SECONDS", 0.05)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(adoption.standing(newer, Limits())))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive(), "it waits for the one before"
    lease.release()
    thread.join(10)
    assert found == [NOWHERE], "it claims for itself"
    assert held(older) == []


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (Limits(on_blocked="skip"), Skipped),
        (Limits(on_blocked="fail"), Blocked),
        (Limits(wait_timeout_seconds=0.2), WaitTimeout),
    ],
)
def test_an_attempt_waits_for_one_before_it_as_it_is_told(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, limits: Limits, error: type[Exception]
) -> None:
    older, newer = new_engine(), new_engine()
    monkeypatch.setattr(adoption, "_attempt_here", lambda _: 2)
    monkeypatch.setattr(adoption, "PAUSE_SECONDS", 0.05)
    with older.acquire(claim(older, 1, "licence")), pytest.raises(error, match=tickets.OLDER_HOLDS):
        adoption.standing(newer, limits)


def test_one_that_is_not_to_wait_for_the_attempt_before_it_is_skipped(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = new_engine(), new_engine()
    monkeypatch.setattr(adoption, "_attempt_here", lambda _: 2)
    monkeypatch.setattr(installation, "engine", lambda: newer)
    limits = Limits(on_blocked="skip")
    facts_of_flow = FlowFacts(flow_run_id=RUN, flow_name="f", run_count=2)
    monkeypatch.setattr(facts, "running_flow", lambda _: facts_of_flow)
    with older.acquire(claim(older, 1, "licence")) as lease:
        with gate.attempt(limits) as attempt:
            assert (attempt.skipped.name, attempt.skipped.message) == ("Skipped", tickets.OLDER_HOLDS)
        assert held(older) == [lease.claim_id]


@pytest.mark.parametrize(("attempt", "given"), [(1, False), (None, False), (2, True)])
def test_an_attempt_joins_its_own_lease(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, attempt: int | None, given: bool
) -> None:
    """A retry of the flow in its process is an attempt too: what the worker held for it goes on."""
    worker, process = new_engine(), new_engine()
    lease = worker.acquire(claim(worker, 1, "licence"))
    if given:
        monkeypatch.setenv(adoption.CLAIM, lease.claim_id)
    found = adoption._once(process, lambda _: attempt)
    assert found is not None
    assert (found.run_claim_id, found.run_pools) == (lease.claim_id, {"licence": 1})


@pytest.mark.parametrize("enforcement", ["enforce", "off"])
def test_slots_that_go_while_they_are_joined_are_missed_where_there_are_limits(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, api: Api, enforcement: Any
) -> None:
    worker, process = new_engine(), new_engine()
    lease = worker.acquire(claim(worker, 1, "licence"))
    monkeypatch.setenv(adoption.CLAIM, lease.claim_id)
    monkeypatch.setattr(adoption, "_joined", lambda *_: NOWHERE)
    process.settings = replace(process.settings, enforcement=enforcement)
    assert adoption._once(process, lambda _: 1) == NOWHERE
    assert len(api.lines) == (enforcement == "enforce")


def test_a_lease_that_ends_while_it_is_joined_is_not_replaced(new_engine: NewEngine) -> None:
    worker, process = new_engine(), new_engine()
    lease = worker.acquire(claim(worker, 1, "licence"))
    run = process.store.run_lease(claim(process).holder)
    assert run is not None
    lease.release()
    assert adoption._joined(process, claim(process), run) == NOWHERE
    assert held(process) == []


def test_a_flow_that_cannot_join_at_its_start_joins_when_the_store_is_back(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, process, back = new_engine(), new_engine(), threading.Event()
    lease = worker.acquire(claim(worker))
    monkeypatch.setenv(adoption.CLAIM, lease.claim_id)
    monkeypatch.setattr(adoption, "LATER_SECONDS", 0.05)

    def engine() -> Engine:
        if not back.is_set():
            raise StoreUnavailable("away")
        return process

    monkeypatch.setattr(installation, "engine", engine)
    adoption.setup_environment(ctx=None)
    assert process.leases.find(lease.claim_id) is None
    back.set()
    deadline = time.monotonic() + 10
    while process.leases.find(lease.claim_id) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_whose_slots_are_gone_before_its_process_begins_says_so_in_an_error(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """Its worker was killed, and the process took longer to begin than the worker's session lives."""
    worker, process = new_engine(), new_engine()
    lease = worker.acquire(claim(worker, 1, "licence"))
    monkeypatch.setenv(adoption.CLAIM, lease.claim_id)
    worker.close()
    monkeypatch.setattr(installation, "engine", lambda: process)
    adoption.setup_environment(ctx=None)
    assert api.lines == [(logging.ERROR, adoption.GONE, RUN)]
    assert adoption.standing(process, Limits()) == NOWHERE
    # Prefect's engine, which takes this process's place, and what that starts have nothing to tell again.
    monkeypatch.setattr(adoption, "_standings", {})
    adoption.setup_environment(ctx=None)
    assert len(api.lines) == 1


@pytest.mark.parametrize("joined_before", [False, True])
def test_a_process_that_has_missed_no_slots_says_nothing(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, api: Api, joined_before: bool
) -> None:
    """No worker had any for it; or the process that started it had joined them, and may be without for a while."""
    monkeypatch.delenv(adoption.CLAIM, raising=False)
    if joined_before:
        monkeypatch.setenv(adoption.CLAIM, "claim")
        monkeypatch.setenv(adoption.SESSION, f"{os.getppid()}:session")
    assert adoption._once(new_engine(), lambda _: 1) == NOWHERE
    assert api.lines == []


@pytest.mark.parametrize(
    ("state", "here", "there"),
    [
        (Pending(), True, True),
        (Running(), True, True),
        (None, True, False),
        (Crashed(), False, False),
        (Cancelling(), False, False),
    ],
)
def test_an_error_is_told_in_the_log_of_a_run_that_goes_on(
    api: Api, caplog: pytest.LogCaptureFixture, state: Any, here: bool, there: bool
) -> None:
    """Not where Prefect only calls the hooks of one that was killed, in a process of the same environment."""
    api.state = state
    asking.tell_run(RUN, "it goes on")
    assert api.lines == ([(logging.ERROR, "it goes on", RUN)] if there else [])
    assert any(line.levelno == logging.ERROR for line in caplog.records) is here


def test_an_attempt_that_never_began_goes_by_the_number_of_the_next(new_engine: NewEngine) -> None:
    """It crashed while it was prepared: its process may live on, with the lease in its hands."""
    older, newer = new_engine(), new_engine()
    lease = older.acquire(claim(older))
    assert tickets.older_attempt_holds(newer, claim(newer))
    tickets.end(newer, claim(newer))
    assert held(newer) == [lease.claim_id]
    lease.release()
    ticket = newer.request(claim(newer), ticket=True).acquire()
    assert not tickets.older_attempt_holds(older, claim(older)), "the worker before has left it to this one"
    tickets.end(older, claim(older))
    assert held(older) == []
    assert ticket.session_id is None


@pytest.mark.parametrize(
    ("attempt", "run_count", "state", "freed"),
    [(1, 0, Pending(), True), (1, 1, Running(), True), (2, 0, Pending(), False), (2, 1, Running(), False)],
)
def test_a_crash_that_is_told_of_late_frees_nothing_of_the_next_attempt(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, attempt: int, run_count: int, state: Any, freed: bool
) -> None:
    engine = new_engine()
    engine.acquire(claim(engine, attempt))
    monkeypatch.delenv(adoption.FLOW_RUN)
    monkeypatch.setattr(installation, "engine", lambda: engine)
    run = SimpleNamespace(id=RUN, name="run", run_count=run_count, state=state)
    ending.free_slots(SimpleNamespace(name="flow"), run, SimpleNamespace(name="Crashed"))
    assert (held(engine) == []) is freed


ON, ALLOW = f"{adoption.PLUGINS}_ENABLED", f"{adoption.PLUGINS}_ALLOW"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {ON: "true", ALLOW: "penstock"}),
        ({ALLOW: "ours"}, {ON: "true", ALLOW: "ours,penstock"}),
        ({ON: "True"}, {ON: "True"}),
        ({ON: "1", ALLOW: "ours"}, {ON: "1", ALLOW: "ours,penstock"}),
        ({ON: "1", ALLOW: "penstock, ours"}, {ON: "1", ALLOW: "penstock, ours"}),
        ({ON: "false"}, {ON: "true", ALLOW: "penstock"}),
    ],
)
def test_plugins_that_a_run_is_given_stay(before: dict[str, str], after: dict[str, str]) -> None:
    environment = dict(before)
    adoption.prepare(environment, "claim")
    assert environment == {**after, adoption.CLAIM: "claim", adoption.SESSION: ""}


def test_a_run_does_not_take_the_session_of_what_its_worker_was_started_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its process would pass for one that the run's own has started, and not be told of slots that are gone."""
    monkeypatch.setenv(adoption.SESSION, "1:another-session")
    environment: dict[str, str] = {}
    adoption.prepare(environment, "claim")
    assert (os.environ | environment)[adoption.SESSION] == ""


def test_the_environment_of_a_kubernetes_job_is_left_alone() -> None:
    environment = [{"name": "A", "value": "b"}]
    adoption.prepare(environment, "claim")
    assert environment == [{"name": "A", "value": "b"}]


class _Overloaded(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        self.send_response(503)
        self.send_header("Retry-After", "60")
        self.send_header("Prefect-Maintenance", "true")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_says_to_come_back_later_is_not_waited_for() -> None:
    with HTTPServer(("127.0.0.1", 0), _Overloaded) as server:
        server.asked = 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}),
            pytest.raises(httpx.HTTPStatusError),
        ):
            probing.attempt_is_alive(RUN, 1)
        assert time.monotonic() - began < 5.0
        assert server.asked == 1  # type: ignore[attr-defined]
        server.shutdown()


def test_a_server_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        # In a thread, as the heartbeat asks.
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                with temporary_settings({PREFECT_API_URL: url}):
                    probing.attempt_is_alive(RUN, 1)
            except httpx.HTTPError as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert [type(error) for error in raised] == [httpx.ReadTimeout]
        assert time.monotonic() - began < 3.0
