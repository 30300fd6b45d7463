"""What a worker does where the API or its own infrastructure fails: a real store, stand-ins for Prefect's side."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.connection import connect
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings
from penstock_prefect import suspended, tickets, waiting_run
from penstock_prefect.claims import Limits
from penstock_prefect.waiting_run import WaitingRun
from penstock_prefect.worker import LimitedRuns
from prefect.states import Pending, Running, Scheduled, Suspended
from prefect.workers.base import BaseWorkerResult

RUN = SimpleNamespace(
    id="run-1",
    name="amber",
    flow_id="flow-1",
    deployment_id=None,
    run_count=0,
    auto_scheduled=False,
    tags=[],
    job_variables={},
    empirical_policy=SimpleNamespace(resuming=False),
)
AWAY = httpx.ConnectError("the API is away")


def on_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    return run


class Client:
    """Prefect's, as far as a worker asks it."""

    def __init__(self) -> None:
        self.asked, self.error = 0, None
        self.state: Any = Scheduled(name=waiting_run.AWAITING)

    async def read_flow(self, _flow_id: Any) -> Any:
        return SimpleNamespace(name="flow")

    async def read_flow_run(self, _flow_run_id: Any) -> Any:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return SimpleNamespace(**{**vars(RUN), "state": self.state})


class Base:
    """A worker class of Prefect's: its infrastructure runs until it is told to end."""

    identifier: Any = "job"
    joins: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.client, self._prefetch_seconds, self._work_pool_name = Client(), 10.0, "pool"
        self._logger = logging.getLogger("worker")
        self.begun, self.ends = asyncio.Event(), asyncio.Event()

    def get_flow_run_logger(self, _flow_run: Any) -> Any:
        return self._logger

    async def teardown(self, *_: Any) -> None:
        pass

    async def run(self, _flow_run: Any, _configuration: Any, task_status: Any) -> Any:
        task_status.started(self.identifier)
        self.joins()
        self.begun.set()
        await self.ends.wait()
        return BaseWorkerResult(identifier="job", status_code=0)


class Limited(LimitedRuns, Base):
    engine: Engine

    async def _engine(self) -> Engine:
        return self.engine


class Elsewhere(Limited):
    runs_join = False


class OnThisMachine(Limited):
    runs_here = True
    identifier: Any = os.getpid()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = Settings(poll_max_seconds=0.1, ticket_seconds=3.0)
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    with connect(url, host="prefect", deployment="test", settings=settings) as engine:
        version, _ = engine.configuration(fresh=True)
        limits = {"pools": {"limits": {"open": 1, "closed": 0}}}
        changes.apply(engine, Concurrency.model_validate(limits), expected_version=version)
        Limited.engine = engine
        yield engine


class Proposed(list[Any]):
    """The states that were proposed. Those of a name in `failing` met an error."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()

    async def propose(self, _client: Any, state: Any, *, flow_run_id: Any) -> Any:  # as Prefect's
        self.append(state)
        if state.name in self.failing:
            raise AWAY
        return state


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> Proposed:
    proposed = Proposed()
    monkeypatch.setattr(waiting_run, "propose_state", proposed.propose)
    return proposed


def asks(pool: str, **words: Any) -> Any:
    return SimpleNamespace(**{**vars(RUN), "job_variables": {"penstock": {"pools": [pool], **words}}})


def configuration(env: Any = None) -> Any:
    return SimpleNamespace(env={} if env is None else env)


def claims(engine: Engine) -> list[Any]:
    return [row for row in engine.snapshot().claims if row.claim.run_id == RUN.id]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("on_blocked", ["skip", "fail", "wait"])
@on_a_loop
async def test_a_run_elsewhere_keeps_its_slots_without_its_worker(engine: Engine, on_blocked: str) -> None:
    """Whether it would have waited or not: no session stands behind them, the API is asked."""
    one = Elsewhere()
    running = asyncio.create_task(one.run(asks("open", on_blocked=on_blocked), configuration()))
    await asyncio.wait({running, asyncio.ensure_future(one.begun.wait())}, return_when=asyncio.FIRST_COMPLETED)
    (row,) = claims(engine)
    assert (row.probed, row.session_ids) == (True, ())
    assert row.claim.claim_id not in engine.leases.known()
    one.ends.set()
    await running
    assert claims(engine) == []


@on_a_loop
async def test_a_run_that_cannot_be_prepared_leaves_no_lease(engine: Engine) -> None:
    class Broken:
        @property
        def env(self) -> Any:
            raise TypeError("no environment")

    with pytest.raises(TypeError):
        await Limited().run(asks("open"), Broken())
    assert claims(engine) == []


async def cut_off(one: Limited) -> None:
    """Cancel its run as Prefect does: whoever waits for anything in there does not get any further."""
    async with anyio.create_task_group() as group:
        group.start_soon(one.run, asks("open"), configuration())
        async with asyncio.timeout(20):
            await one.begun.wait()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("kind", [Limited, OnThisMachine])
@on_a_loop
async def test_the_slots_of_a_killed_worker_stay_for_a_process_on_another_machine(
    engine: Engine, kind: type[Limited]
) -> None:
    """It takes longer to begin than the worker's session lives: the API is asked meanwhile. Here it would be soon."""
    settings = Settings(session_ttl_seconds=1.0)
    with (
        connect(engine.store.url, host="prefect", deployment="test", settings=settings) as worker,
        connect(engine.store.url, host="prefect", deployment="test") as process,
    ):
        one = kind()
        one.engine = worker
        running = asyncio.create_task(one.run(asks("open"), configuration()))
        async with asyncio.timeout(20):
            await one.begun.wait()
        (row,) = claims(engine)
        assert (row.session_ids, row.probed) == ((worker.session_id(),), kind is Limited)
        worker._session._stop.set()  # it beats no more
        await until(lambda: worker.store.sweep().sessions == 0)
        assert [row.claim.claim_id for row in claims(engine)] == ([row.claim.claim_id] if kind is Limited else [])
        if kind is Limited:
            joined = process.acquire(process.run_claim(RUN.id))
            assert joined.claim_id == row.claim.claim_id
            assert (claims(engine)[0].session_ids, claims(engine)[0].probed) == ((process.session_id(),), False)
        one.ends.set()
        await running


@on_a_loop
async def test_a_run_whose_process_has_not_joined_yet_is_left_to_its_worker(engine: Engine, proposed: Proposed) -> None:
    """It was declared crashed meanwhile, and scheduled again: no second process is started for it."""
    one, other = Limited(), Limited()
    running = asyncio.create_task(one.run(asks("open"), configuration()))
    async with asyncio.timeout(20):
        await one.begun.wait()
    with connect(engine.store.url, host="prefect", deployment="test") as elsewhere:
        other.engine = elsewhere
        other.client.state = Pending()
        again = asyncio.create_task(other.run(asks("open"), configuration()))
        await until(lambda: other.client.asked > 2)
        assert not other.begun.is_set()
        other.client.state = Running()
        assert (await again).identifier == "not started"
    one.ends.set()
    await running
    assert claims(engine) == [], "that nobody has joined them is no reason to keep them"


@on_a_loop
async def test_a_run_whose_process_never_joins_keeps_its_slots_while_it_is_suspended(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_HOLD_WHILE_SUSPENDED", "*")
    one = Limited()
    one.client.state = Suspended(timeout_seconds=60)
    one.ends.set()
    await one.run(asks("open"), configuration())
    (row,) = claims(engine)
    assert (row.state, row.session_ids, row.probed) == ("held", (), True)


@pytest.mark.parametrize("kind", [Limited, OnThisMachine])
@on_a_loop
async def test_a_worker_that_stops_before_the_process_has_joined_leaves_it_its_slots(
    engine: Engine, kind: type[Limited]
) -> None:
    """That may come after the worker has gone: on other machines whenever the API says that the run is not over."""
    one = kind()
    await cut_off(one)
    await until(lambda: not engine.leases.known())
    (row,) = claims(engine)
    assert (row.state, row.session_ids, row.probed) == ("held", (), kind is Limited)
    assert row.expires_at is not None
    with connect(engine.store.url, host="prefect", deployment="test") as process:
        joined = process.acquire(process.run_claim(RUN.id))
        assert joined.claim_id == row.claim.claim_id
        (row,) = claims(engine)
        assert (row.session_ids, row.probed) == ((process.session_id(),), False)
    assert claims(engine) == [], "from then on the slots are its process's"


@pytest.mark.parametrize("kind", [Limited, OnThisMachine])
@on_a_loop
async def test_a_worker_that_stops_leaves_the_process_that_has_joined_alone(
    engine: Engine, kind: type[Limited]
) -> None:
    with connect(engine.store.url, host="prefect", deployment="test") as process:
        one = kind()
        one.joins = lambda: process.acquire(process.run_claim(RUN.id))
        await cut_off(one)
        await until(lambda: not engine.leases.known())
        (row,) = claims(engine)
        assert (row.state, row.session_ids, row.probed) == ("held", (process.session_id(),), False)
    assert claims(engine) == []


@on_a_loop
async def test_a_run_that_has_ended_while_the_store_was_away_is_not_kept_alive(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("the store is away")

    one = Limited()
    running = asyncio.create_task(one.run(asks("open"), configuration()))
    async with asyncio.timeout(20):
        await one.begun.wait()
    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "run_lease", away)
        patch.setattr(engine.store, "release", away)
        one.ends.set()
        await running
    assert engine.leases.known() == set(), "the next beat ends it"


@on_a_loop
async def test_a_run_that_cannot_be_put_off_leaves_its_ticket_to_others(engine: Engine, proposed: Proposed) -> None:
    proposed.failing.add(waiting_run.AWAITING)
    with pytest.raises(httpx.ConnectError):
        await Limited().run(asks("closed"), configuration())
    await until(lambda: len(asyncio.all_tasks()) == 1)
    await until(lambda: not engine.wakeups._tickets)
    assert [row.state for row in claims(engine)] == ["waiting"], "it expires, or whoever comes next goes on with it"


def place(engine: Engine, one: Limited, pool: str) -> tuple[Any, tickets.Place]:
    claim = replace(engine.run_claim(RUN.id, pool), attempt=1)
    return claim, tickets.queue(engine, claim, probed=not one.runs_join)


@on_a_loop
async def test_an_api_that_fails_is_not_asked_without_a_pause(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, proposed: Proposed
) -> None:
    """Though the lease is there already."""
    monkeypatch.setattr(waiting_run, "AGAIN_SECONDS", 0.3)
    one = Limited()
    claim, granted = place(engine, one, "open")
    await granted.lease
    one.client.error = AWAY
    wait = asyncio.create_task(WaitingRun(one, engine, RUN, claim, Limits()).wait(granted))
    await until(lambda: one.client.asked > 0)
    await asyncio.sleep(1.0)
    assert one.client.asked <= 5
    one.client.error, one.client.state = None, Pending()
    await wait


@on_a_loop
async def test_a_time_out_counts_from_where_the_wait_began(engine: Engine, proposed: Proposed) -> None:
    """In another worker, which has left its ticket."""
    one = Limited()
    _, first = place(engine, one, "closed")
    await until(lambda: bool(claims(engine)))
    tickets.let_go(engine, first)
    await asyncio.sleep(1.5)
    began = time.monotonic()
    again, second = place(engine, one, "closed")
    await until(lambda: second.request.queued)
    await WaitingRun(one, engine, RUN, again, Limits(wait_timeout_seconds=1.5)).wait(second)
    assert time.monotonic() - began < 1.0
    assert [state.name for state in proposed] == ["Failed"]
    assert claims(engine) == []


@on_a_loop
async def test_an_end_that_cannot_be_told_is_said_in_the_log(
    engine: Engine, proposed: Proposed, caplog: pytest.LogCaptureFixture
) -> None:
    proposed.failing.add("Failed")
    one = Limited()
    claim, waits = place(engine, one, "closed")
    await WaitingRun(one, engine, RUN, claim, Limits(wait_timeout_seconds=0)).wait(waits)
    assert "is asked again when its time comes: the API is away" in caplog.text


@on_a_loop
async def test_a_store_that_is_not_to_be_waited_for_ends_the_run(
    engine: Engine, proposed: Proposed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("the store is away")

    engine.settings = replace(engine.settings, on_store_error="fail")
    monkeypatch.setattr(engine.store, "run_lease", away)
    one = Limited()
    claim, waits = place(engine, one, "closed")
    await WaitingRun(one, engine, RUN, claim, Limits()).wait(waits)
    assert [(state.name, state.message) for state in proposed] == [("Failed", "the store is away")]


@on_a_loop
async def test_a_run_without_limits_says_so_in_its_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    one = Limited()
    one.ends.set()
    lease, described = engine.without_limits(engine.run_claim(RUN.id)), configuration()
    await one._run_with(lease, engine, RUN, described, None)
    assert "WITHOUT LIMITS" in caplog.text
    assert described.env == {}, "its process has nothing to look for, and to miss"


@on_a_loop
async def test_a_worker_that_stops_leaves_its_waiters_to_others_at_once(engine: Engine, proposed: Proposed) -> None:
    one = Limited()
    await one.run(asks("closed"), configuration())
    put_off = proposed[-1].state_details.scheduled_time
    assert 30 < (put_off - datetime.now(UTC)).total_seconds() < 40, (
        "beyond the prefetch, and seen before its ticket ends"
    )
    await one.teardown()
    assert (proposed[-1].state_details.scheduled_time - datetime.now(UTC)).total_seconds() <= 0
    assert [row.state for row in claims(engine)] == ["waiting"]
    assert not one._waits


@pytest.mark.parametrize("kind", [Limited, Elsewhere])
@on_a_loop
async def test_a_resumed_run_takes_what_was_kept_for_it(engine: Engine, kind: type[Limited]) -> None:
    """Its worker knows it for one that was suspended, though Prefect counts it as an attempt to come."""
    before = engine.acquire(replace(engine.run_claim(RUN.id, "open"), attempt=1))
    assert suspended.keep(engine, before, ["open"]) is False, "not without the setting"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_HOLD_WHILE_SUSPENDED", "*")
        assert suspended.keep(engine, before, ["open"])
    one = kind()
    resumed = SimpleNamespace(
        **{**vars(asks("open")), "run_count": 1, "empirical_policy": SimpleNamespace(resuming=True)}
    )
    running = asyncio.create_task(one.run(resumed, configuration()))
    async with asyncio.timeout(20):
        await one.begun.wait()
    (row,) = claims(engine)
    assert (row.claim.claim_id, bool(row.session_ids)) == (before.claim_id, kind is Limited)
    one.ends.set()
    await running
    assert claims(engine) == []


@pytest.mark.parametrize("on_blocked", ["wait", "skip"])
@pytest.mark.parametrize("state", [Running(), None])
@on_a_loop
async def test_a_run_that_a_process_is_about_to_begin_is_left_to_that(
    engine: Engine, proposed: Proposed, on_blocked: str, state: Any
) -> None:
    """It was declared crashed while that was being prepared, and scheduled again. Put off, each would wait for the
    other: that process asks the API when to begin.
    """
    with connect(engine.store.url, host="prefect", deployment="test") as process:
        process.acquire(replace(process.run_claim(RUN.id, "open"), attempt=1))
        one = Limited()
        one.client.state = Pending()
        running = asyncio.create_task(one.run(asks("open", on_blocked=on_blocked), configuration()))
        await until(lambda: one.client.asked > 2)
        one.client.state = state
        assert (await running).identifier == "not started"
        assert not one.begun.is_set()
    assert proposed == []


@on_a_loop
async def test_a_run_whose_process_has_died_before_it_began_is_started(engine: Engine, proposed: Proposed) -> None:
    one = Limited()
    one.client.state = Pending()
    with connect(engine.store.url, host="prefect", deployment="test") as process:
        process.acquire(replace(process.run_claim(RUN.id, "open"), attempt=1))
        running = asyncio.create_task(one.run(asks("open"), configuration()))
        await until(lambda: one.client.asked > 2)
        one.client.error = AWAY
        await until(lambda: one.client.asked > 4)
        assert not one.begun.is_set()
    one.client.error = None
    async with asyncio.timeout(20):
        await one.begun.wait()
    one.ends.set()
    await running
    assert claims(engine) == []


@on_a_loop
async def test_a_run_that_returns_while_its_process_is_found_gone_gives_back_all_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API is asked whether it is suspended, which takes a while."""
    asked = asyncio.Event()

    class SlowClient(Client):
        async def read_flow_run(self, flow_run_id: Any) -> Any:
            asked.set()
            await asyncio.sleep(0.5)
            return await super().read_flow_run(flow_run_id)

    class Here(Limited):
        runs_here = True

        def __init__(self) -> None:
            super().__init__()
            self.client = SlowClient()

    class Ended(Base):
        async def run(self, _flow_run: Any, _configuration: Any, task_status: Any) -> Any:
            ended = subprocess.Popen([sys.executable, "-c", ""])
            ended.wait()
            task_status.started(ended.pid)
            await asked.wait()
            return BaseWorkerResult(identifier="job", status_code=0)

    class Worker(Here, Ended):
        pass

    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_HOLD_WHILE_SUSPENDED", "*")
    await Worker().run(asks("open"), configuration())
    assert claims(engine) == []
