"""The deferred wait on a real store, without an Airflow around it."""

from __future__ import annotations

import asyncio
import logging
import threading
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
from penstock.engine import ASYNC_THREADS, Engine
from penstock.errors import ConfigError, Fault, StoreUnavailable
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


def test_a_run_that_is_held_back_begins_when_there_is_room_and_its_task_waits_with_it(
    engines: Callable[[], Engine], triggerer: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.airflow")
    other, worker = engines(), engines()
    lease = other.acquire(op(other, "first"))
    run = replace(worker.run_claim("dag/run"), roots=(("pool",),))

    async def wait() -> None:
        waiting = asyncio.create_task(fired(trigger_for(run, op(worker, "second"))))
        while "the run does not begin before there is room" not in caplog.text:
            await asyncio.sleep(0.01)
        assert not triggerer.status()["waiters"], "others may have the run's slot"
        lease.release()
        await asyncio.wait_for(waiting, SOON)

    asyncio.run(wait())
    labels = sorted(row["label"] for row in worker.status()["leases"])
    assert labels == ["airflow/tests dag/run", "airflow/tests dag/run second"]


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


def holding(engine: Engine, claim: Claim, trigger: Any) -> Any:
    """The trigger that keeps the slots of an operator; its lease has become a ticket."""
    from penstock_airflow.trigger import HoldingTrigger

    lease = engine.acquire(claim)
    wrapped = HoldingTrigger.around(trigger, replace(claim, claim_id=lease.claim_id))
    lease.hand_over(seconds=engine.settings.ticket_seconds)
    return wrapped


def test_an_operators_trigger_goes_on_though_its_slots_cannot_be_kept(
    engines: Callable[[], Engine], triggerer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = engines()
    wrapped = holding(other, op(other, "deferred"), inner("done"))

    def nobody() -> None:
        raise ConfigError([Fault("no store_url here", path="[penstock]")])

    monkeypatch.setattr(installation, "engine", nobody)
    assert asyncio.run(asyncio.wait_for(fired(wrapped), SOON)).payload["event"] == "done"


def inner(*events: object, **kwargs: Any) -> Any:
    from airflow_triggers import ScriptedTrigger

    return ScriptedTrigger(events=list(events), **kwargs)


def test_the_time_of_a_wait_is_over_though_nothing_is_free(engines: Callable[[], Engine], triggerer: Engine) -> None:
    from penstock_airflow.trigger import PenstockTrigger

    other = engines()
    other.acquire(op(other, "first"))
    trigger = PenstockTrigger.waiting_for([op(other, "second")], not_before=0.0, until=time.time() + 0.2)
    asyncio.run(asyncio.wait_for(fired(trigger), SOON))
    assert [row["op_id"] for row in triggerer.status()["waiters"]] == ["second"], "the task itself gives up the place"


def test_a_url_that_cannot_be_read_at_first_is_asked_for_again(
    engines: Callable[[], Engine], triggerer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of everything: the triggerer is there before the API server that knows the connection."""
    answers = iter([StoreUnavailable("the connection cannot be read")])

    def engine() -> Engine:
        if (error := next(answers, None)) is not None:
            raise error
        return triggerer

    monkeypatch.setattr(installation, "engine", engine)
    event = asyncio.run(asyncio.wait_for(fired(trigger_for(op(engines(), "one"))), SOON))
    assert "store_error" not in event.payload


def test_a_store_that_stays_away_sends_the_task_to_say_so(
    engines: Callable[[], Engine], triggerer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("nobody answers")

    other = engines()
    trigger = trigger_for(op(other, "one"))
    monkeypatch.setattr(triggerer, "settings", replace(triggerer.settings, store_retry_seconds=0.2))
    monkeypatch.setattr(triggerer.store, "acquire", away)
    event = asyncio.run(asyncio.wait_for(fired(trigger), SOON))
    assert event.payload["store_error"] == "nobody answers"


def test_a_triggerer_that_ends_leaves_the_place_and_nothing_in_its_memory(
    engines: Callable[[], Engine], triggerer: Engine
) -> None:
    """A lease that a cancelled wait was granted stayed known to the triggerer, which took it for its own later."""
    other = engines()
    lease = other.acquire(op(other, "first"))
    claim = op(other, "second")

    async def wait() -> None:
        waiting = asyncio.create_task(fired(trigger_for(claim)))
        while not triggerer.status()["waiters"]:
            await asyncio.sleep(0.01)
        lease.release()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(wait())
    triggerer.in_thread(lambda: None).result()
    while triggerer.leases.find(claim.claim_id) is not None:
        time.sleep(0.01)
    adopted = other.request(claim).step()
    assert isinstance(adopted, Granted)


def test_five_hundred_triggers_share_one_thread_and_one_poll(
    engines: Callable[[], Engine], triggerer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = engines()
    other.acquire(op(other, "first"))
    triggers = [trigger_for(op(other, f"op_{number}")) for number in range(500)]
    asked: list[str] = []

    def counted(name: str) -> None:
        call = getattr(triggerer.store, name)

        def asking(*args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return call(*args, **kwargs)

        monkeypatch.setattr(triggerer.store, name, asking)

    async def wait() -> None:
        waits = [asyncio.create_task(fired(trigger)) for trigger in triggers]
        while len(triggerer.wakeups._waiters) < 500 or len(triggerer.status()["waiters"]) < 500:
            await asyncio.sleep(0.05)
        while True:  # until all of them have said once what they wait for
            for name in ("to_touch", "touch", "acquire", "reasons"):
                counted(name)
            rounds = len(asked)
            while asked[rounds:].count("to_touch") < 10:
                await asyncio.sleep(0.05)
            if set(asked[rounds:]) == {"to_touch"}:
                break
            monkeypatch.undo()
            monkeypatch.setattr(installation, "engine", lambda: triggerer)
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("penstock-wakeups") == 1
        assert sum(name.startswith("penstock") for name in names) <= 1 + ASYNC_THREADS + 2 * 2  # sessions of the others
        for each in waits:
            each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    asyncio.run(asyncio.wait_for(wait(), 60))


def test_a_trigger_is_wrapped_with_all_that_makes_it_what_it_is(
    engines: Callable[[], Engine], triggerer: Engine
) -> None:
    from penstock_airflow.trigger import HoldingTrigger

    wrapped = holding(engines(), op(triggerer, "one"), inner("done", note="n"))
    path, kwargs = wrapped.serialize()
    assert path == "penstock_airflow.trigger.HoldingTrigger"
    assert (kwargs["note"], kwargs["events"]) == ("n", ["done"])
    again = HoldingTrigger(**kwargs)
    assert again.serialize() == (path, kwargs)
    assert again.supports_triggerer_queue, "as the trigger inside"
    again.task_instance, again.trigger_id, again.timeout_after = None, 7, None
    event = asyncio.run(fired(again))
    assert event.payload == {"event": "done", "trigger_id": 7}


def test_a_trigger_inside_that_cannot_be_made_fails_alone() -> None:
    """Airflow's triggerer survives a TypeError of a trigger's constructor; of any other error it dies."""
    from penstock_airflow.trigger import HoldingTrigger

    with pytest.raises(TypeError, match=r"nowhere\.Trigger"):
        HoldingTrigger(penstock_claim="{}", penstock_trigger="nowhere.Trigger")


def test_slots_are_kept_until_the_operator_is_back(engines: Callable[[], Engine], triggerer: Engine) -> None:
    worker = engines()
    claim = op(worker, "one")
    wrapped = holding(worker, claim, inner("wait", "done"))

    def expiry() -> int:
        (row,) = triggerer.store.snapshot().claims
        return int(row.expires_at or 0)

    handed_over = expiry()

    async def both() -> None:
        waiting = asyncio.create_task(fired(wrapped))
        while expiry() == handed_over:
            await asyncio.sleep(0.01)
        wrapped.inner.go_on.set()
        await asyncio.wait_for(waiting, SOON)

    asyncio.run(both())
    assert not triggerer.wakeups._kept
    adopted = engines().request(replace(claim, claim_id="new")).step()
    assert isinstance(adopted, Granted)


def test_a_trigger_that_ends_the_task_gives_the_slots_back(engines: Callable[[], Engine], triggerer: Engine) -> None:
    wrapped = holding(engines(), op(triggerer, "one"), inner("end"))

    async def whole() -> list[Any]:
        return [event async for event in wrapped.run()]

    (event,) = asyncio.run(whole())
    assert type(event).__name__ == "TaskSuccessEvent"
    assert not triggerer.status()["leases"]


def test_a_user_who_ends_the_task_frees_its_slots_and_ends_its_job(
    engines: Callable[[], Engine], triggerer: Engine
) -> None:
    wrapped = holding(engines(), op(triggerer, "one"), inner("wait"))

    async def kill() -> None:
        waiting = asyncio.create_task(fired(wrapped))
        while not triggerer.wakeups._kept:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await wrapped.on_kill()

    asyncio.run(kill())
    assert wrapped.inner.killed
    assert not triggerer.status()["leases"]
    assert not triggerer.wakeups._kept


def test_a_triggerer_that_ends_leaves_the_slots_held(engines: Callable[[], Engine], triggerer: Engine) -> None:
    wrapped = holding(engines(), op(triggerer, "one"), inner("wait"))

    async def stop() -> None:
        waiting = asyncio.create_task(fired(wrapped))
        while not triggerer.wakeups._kept:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await wrapped.cleanup()

    asyncio.run(stop())
    assert [row["op_id"] for row in triggerer.status()["leases"]] == ["one"]


def test_the_trigger_inside_runs_whatever_the_store_does(
    monkeypatch: pytest.MonkeyPatch, engines: Callable[[], Engine], triggerer: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = holding(engines(), op(triggerer, "one"), inner("done"))

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("nobody answers")

    monkeypatch.setattr(triggerer.store, "renew", away)
    assert asyncio.run(fired(wrapped)).payload["event"] == "done"
    assert "could not be renewed" in caplog.text
