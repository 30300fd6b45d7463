"""The deferred wait on a real store, without an Airflow around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from penstock import changes
from penstock.claim import Claim
from penstock.config import Concurrency
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import ConfigError, StoreUnavailable
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from penstock_airflow import installation

SOON = 10.0


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Engines of one installation on one store, each as if in a process of its own."""
    made: list[Engine] = []

    def engine() -> Engine:
        store = SqlStore(f"sqlite:///{tmp_path / 'penstock.db'}")
        store.check_schema()
        made.append(Engine(store, host="airflow", deployment="tests", settings=Settings(poll_max_seconds=0.05)))
        return made[-1]

    changes.apply(
        engine(),
        Concurrency.from_document({"pools": {"default_limit": 1}, "runs": {"max_concurrent_runs": 1}}),
        expected_version=0,
    )
    yield engine
    for each in made:
        each.close()


@pytest.fixture
def triggerer(engines: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = engines()
    monkeypatch.setattr(installation, "engine", lambda: engine)
    return engine


def op(engine: Engine, op_id: str) -> Claim:
    return engine.claim("pool", run_id="dag/run", op_id=op_id)


def trigger_for(*claims: Claim, after_seconds: float = 0.0) -> Any:
    from penstock_airflow.trigger import PenstockTrigger

    return PenstockTrigger.waiting_for(claims, not_before=time.time() + after_seconds)


async def fired(trigger: Any) -> Any:
    return await anext(trigger.run())


def test_it_fires_when_the_slot_is_free_and_the_task_adopts_it(
    engines: Callable[[], Engine], triggerer: Engine
) -> None:
    other, worker = engines(), engines()
    lease = other.acquire(op(other, "first"))
    claim = op(worker, "second")

    async def wait() -> None:
        waiting = asyncio.create_task(fired(trigger_for(worker.run_claim("dag/run"), claim)))
        while not triggerer.status()["waiters"]:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        lease.release()
        await asyncio.wait_for(waiting, SOON)

    asyncio.run(wait())
    assert not isinstance(other.request(op(other, "third")).try_step(), Granted)
    adopted = worker.request(op(worker, "second")).step()
    assert isinstance(adopted, Granted)
    adopted.lease.release()
    assert [row["label"] for row in worker.status()["leases"]] == ["airflow/tests dag/run"]


def test_a_restarted_trigger_keeps_its_place(engines: Callable[[], Engine], triggerer: Engine) -> None:
    from penstock_airflow.trigger import PenstockTrigger

    other = engines()
    lease = other.acquire(op(other, "first"))
    trigger = trigger_for(op(other, "second"))
    path, kwargs = trigger.serialize()
    assert path == "penstock_airflow.trigger.PenstockTrigger"

    async def wait() -> None:
        lost = asyncio.create_task(fired(trigger))
        while not triggerer.status()["waiters"]:
            await asyncio.sleep(0.01)
        later = other.request(op(other, "third"))
        later.step()
        lost.cancel()
        again = asyncio.create_task(fired(PenstockTrigger(**kwargs)))
        lease.release()
        await asyncio.wait_for(again, SOON)
        assert not isinstance(later.step(), Granted)

    asyncio.run(wait())


def test_it_is_not_granted_before_its_time(engines: Callable[[], Engine], triggerer: Engine) -> None:
    other = engines()
    began = time.time()
    asyncio.run(asyncio.wait_for(fired(trigger_for(op(other, "one"), after_seconds=0.5)), SOON))
    (lease,) = triggerer.status()["leases"]
    assert time.time() - began >= 0.5
    assert lease["label"] == "airflow/tests dag/run one"


def test_a_killed_task_leaves_the_queue(engines: Callable[[], Engine], triggerer: Engine) -> None:
    other = engines()
    other.acquire(op(other, "first"))
    trigger = trigger_for(other.run_claim("dag/run"), op(other, "second"))

    async def wait() -> None:
        waiting = asyncio.create_task(fired(trigger))
        while not triggerer.status()["waiters"]:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await trigger.on_kill()

    asyncio.run(wait())
    status = triggerer.status()
    assert not status["waiters"]
    assert {row["label"] for row in status["leases"]} == {"airflow/tests dag/run", "airflow/tests dag/run first"}


def test_a_claim_that_somebody_ended_sends_the_task_to_see_for_itself(
    engines: Callable[[], Engine], triggerer: Engine
) -> None:
    other = engines()
    other.acquire(op(other, "first"))
    claim = op(other, "second")

    async def wait() -> None:
        waiting = asyncio.create_task(fired(trigger_for(claim)))
        while not triggerer.status()["waiters"]:
            await asyncio.sleep(0.01)
        assert other.store.end(claim.claim_id, reason="by hand")
        await asyncio.wait_for(waiting, SOON)

    asyncio.run(wait())
    assert not isinstance(other.request(replace(claim, claim_id="new")).try_step(), Granted)


def test_a_store_that_is_away_is_asked_again_and_then_is_an_error() -> None:
    answers = iter([StoreUnavailable("away"), "here"])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert installation.patiently(call) == "here"

    def always_away() -> str:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        installation.patiently(always_away, patience_seconds=0.0)


def test_a_component_without_the_url_does_not_make_a_store_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = installation.Installation(store_url=None, deployment="bare")
    monkeypatch.setattr(installation, "installation", lambda: bare)
    with pytest.raises(ConfigError, match="store_url"):
        installation.engine()
