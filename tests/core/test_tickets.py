"""Waits that go on in other processes: tickets, their places, who is told of them, and that they are kept alive."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from penstock import WaitTimeout
from penstock.claim import Claim
from penstock.decision import Granted, Reason, Waiting
from penstock.engine import Engine
from penstock.hookspecs import hookimpl
from penstock.lease import Lease
from penstock.settings import Settings
from penstock.waiting import Cancelled

Configure = Callable[..., None]
NewEngine = Callable[..., Engine]
SOON = 10.0


class Granters:
    """A plugin that counts the grants it is told of."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    @hookimpl
    def penstock_granted(self, lease: Lease, waited_seconds: float) -> None:
        self.labels.append(lease.claim.label)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def op(engine: Engine, op_id: str, pool: str = "a") -> Claim:
    return engine.claim(pool, run_id="run", op_id=op_id)


def expiry(store: Any, claim_id: str) -> int:
    (expires_at,) = [row.expires_at for row in store.snapshot().claims if row.claim.claim_id == claim_id]
    return int(expires_at)


def waiters(engine: Engine) -> list[str]:
    return [row["op_id"] for row in engine.status()["waiters"]]


def test_a_bounded_wait_keeps_its_place_and_goes_on(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    told: list[Reason] = []
    request = engine.request(op(engine, "first"))
    request.tell = told.extend
    assert request.acquire_within(0.05) is None
    assert [reason.limit for reason in told] == ["pool:a"], "it says why before it gives up"
    engine.request(op(engine, "second")).step()
    holder.release()
    lease = request.acquire_within(SOON)
    assert lease is not None
    assert waiters(engine) == ["second"]


def test_a_long_wait_is_told_of_again(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    told: list[list[str]] = []
    enough = threading.Event()

    def tell(reasons: Sequence[Reason]) -> None:
        told.append([reason.limit for reason in reasons])
        if len(told) == 2:
            enough.set()

    request = engine.request(op(engine, "first"))
    request.tell, request.tell_after_seconds = tell, (0.1, 0.2)
    with pytest.raises(Cancelled):
        request.acquire(cancelled=enough)
    assert told == [["pool:a"]] * 2


def test_a_cancelled_ticket_stays_and_is_not_this_processes(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    claim = op(engine, "deferred")

    async def cancelled() -> None:
        wait = asyncio.create_task(engine.request(claim, ticket=True).acquire_ticket_async(float("inf")))
        while not waiters(engine):
            await asyncio.sleep(0.01)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

    asyncio.run(cancelled())
    assert waiters(engine) == ["deferred"]
    holder.release()
    until(lambda: engine.leases.join(claim) is None)
    assert isinstance(engine.request(claim).step(), Granted)


def test_a_ticket_waits_no_longer_than_asked(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    assert asyncio.run(engine.request(op(engine, "one"), ticket=True).acquire_ticket_async(0.05)) is None
    assert waiters(engine) == ["one"]


def test_the_time_waited_elsewhere_counts(new_engine: NewEngine, engine: Engine, configure: Configure) -> None:
    """A rescheduled task's wait began in another process: only the store knows when."""
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    worker, later = new_engine(), new_engine()
    request = worker.request(op(worker, "one"))
    assert request.acquire_within(0.1) is None
    request.hand_over(ticket_seconds=60)
    again = later.request(op(later, "one"))
    with pytest.raises(WaitTimeout):
        again.acquire(wait_timeout_seconds=0.1)
    assert time.monotonic() - again.started_at >= 0.1
    assert not waiters(engine)


def test_all_who_wait_for_one_runs_lease_are_woken(new_engine: NewEngine, configure: Configure) -> None:
    """A second waiter for the same claim took the first one's place, which then slept until its next look."""
    configure(runs={"max_concurrent_runs": 1})
    engine = new_engine(settings=Settings(poll_max_seconds=0.05))
    holder = engine.acquire(engine.run_claim("other"))

    async def both() -> list[Lease | None]:
        requests = [engine.request(engine.run_claim("run"), ticket=True, probed=True) for _ in range(2)]
        waits = [asyncio.create_task(request.acquire_ticket_async(float("inf"))) for request in requests]
        while not engine.status()["waiters"] or not all(request.queued for request in requests):
            await asyncio.sleep(0.01)
        await engine.off_loop(holder.release)
        return await asyncio.wait_for(asyncio.gather(*waits), SOON)

    assert len(asyncio.run(both())) == 2


def test_one_that_gives_up_takes_no_lease_from_the_others_of_its_run(
    new_engine: NewEngine, configure: Configure
) -> None:
    """Its time-out came when another had just been told of the grant: the run lost its slot while it ran."""
    configure(runs={"max_concurrent_runs": 1})
    engine, other = new_engine(), new_engine()
    first = engine.acquire(engine.run_claim("first"))
    patient, hasty = (each.request(each.run_claim("second"), ticket=True, probed=True) for each in (engine, other))
    assert isinstance(patient.step(), Waiting)
    assert isinstance(hasty.step(), Waiting)
    first.release()
    assert isinstance(patient.step(), Granted)
    hasty.withdraw()
    assert [row["run_id"] for row in engine.status()["leases"]] == ["second"]


def test_a_grant_is_told_of_once(new_engine: NewEngine, configure: Configure) -> None:
    """The trigger and the task that took over from it each told the plugins of the grant; so did each task of a run."""
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 1})
    granters = Granters()
    triggerer, worker, other = new_engine(granters), new_engine(granters), new_engine(granters)
    for engine in (triggerer, worker, other):
        decision = engine.request(engine.run_claim("run"), ticket=True, probed=True).step()
        assert isinstance(decision, Granted)
        decision.lease.hand_over(seconds=60)
    claim = op(triggerer, "one")
    ticket = triggerer.request(claim, ticket=True).step()
    assert isinstance(ticket, Granted)
    ticket.lease.hand_over(seconds=60)
    adopted = worker.request(replace(claim, claim_id="new")).step()
    assert isinstance(adopted, Granted)
    adopted.lease.release()
    assert granters.labels == ["process/process run", "process/process run one"]


def test_tickets_are_renewed_all_at_once(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    held = engine.request(op(engine, "holds"), ticket=True)
    waits = engine.request(op(engine, "waits"), ticket=True)
    assert isinstance(held.step(), Granted)
    assert isinstance(waits.step(), Waiting)
    session = engine.acquire(engine.claim("b"))
    gone = engine.acquire(engine.claim("c"))
    gone.release()
    before = {row.claim.claim_id: row.expires_at for row in store.snapshot().claims}
    asked = [held.claim_id, waits.claim_id, session.claim_id, gone.claim_id, "never seen"]
    assert store.renew(asked, ticket_seconds=1000) == {held.claim_id, waits.claim_id, session.claim_id}
    after = {row.claim.claim_id: row.expires_at for row in store.snapshot().claims}
    for ticket in (held, waits):
        assert after[ticket.claim_id] - before[ticket.claim_id] > 600_000_000
    assert after[session.claim_id] == before[session.claim_id]


def test_a_ticket_that_holds_is_kept_until_it_is_dropped(new_engine: NewEngine, store: Any) -> None:
    engine, gone = new_engine(settings=Settings(poll_max_seconds=0.02, ticket_seconds=3.0)), threading.Event()
    decision = engine.request(op(engine, "deferred"), ticket=True).step()
    assert isinstance(decision, Granted)
    claim_id = decision.lease.hand_over(seconds=3.0)
    handed_over = expiry(store, claim_id)
    engine.wakeups.keep(claim_id, gone.set)
    until(lambda: expiry(store, claim_id) > handed_over + 1_000_000)
    assert not gone.is_set()
    assert store.end(claim_id, reason="by hand")
    assert gone.wait(SOON)
    engine.wakeups.close()


def test_a_ticket_that_is_dropped_expires(new_engine: NewEngine, store: Any) -> None:
    engine = new_engine(settings=Settings(poll_max_seconds=0.02, ticket_seconds=0.2))
    decision = engine.request(op(engine, "deferred"), ticket=True).step()
    assert isinstance(decision, Granted)
    claim_id = decision.lease.hand_over(seconds=0.2)
    engine.wakeups.keep(claim_id, lambda: None)
    engine.wakeups.drop(claim_id)

    def swept() -> bool:
        store.sweep()
        return not store.snapshot().claims

    until(swept)
    engine.wakeups.close()


def test_waiting_tickets_outlive_their_deadline_while_somebody_waits_with_them(
    new_engine: NewEngine, configure: Configure, store: Any
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(settings=Settings(poll_max_seconds=0.02, ticket_seconds=3.0))
    engine.acquire(engine.claim("a"))
    claim = op(engine, "one")

    async def renewed() -> None:
        wait = asyncio.create_task(engine.request(claim, ticket=True).acquire_ticket_async(float("inf")))
        while not waiters(engine):
            await asyncio.sleep(0.02)
        queued = expiry(store, claim.claim_id)
        while expiry(store, claim.claim_id) <= queued:
            await asyncio.sleep(0.02)
        wait.cancel()

    asyncio.run(asyncio.wait_for(renewed(), SOON))
    engine.wakeups.close()


def test_a_host_ends_an_attempt_that_it_knows_to_be_over(new_engine: NewEngine, engine: Engine) -> None:
    other = new_engine()
    other.acquire(op(other, "one"))
    assert engine.end_op(op(engine, "one"), reason="the host says so")
    assert not engine.end_op(op(engine, "one"), reason="the host says so")
    assert not engine.end_op(engine.claim("a"), reason="nobody can name it")
    assert not engine.status()["leases"]


def test_the_reasons_have_links_to_the_holders(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    engine.acquire(replace(op(engine, "shown"), url="https://host.example/1"))
    engine.acquire(op(engine, "unknown"))
    request = engine.request(op(engine, "waits"))
    request.step()
    (reason,) = engine.reasons(request.claim_id)
    assert dict(zip(reason.holders, reason.links, strict=True)) == {
        "process/process run shown": "https://host.example/1",
        "process/process run unknown": None,
    }


def begin_run(engine: Engine) -> None:
    decision = engine.request(engine.run_claim("run"), ticket=True, probed=True).step()
    assert isinstance(decision, Granted)
    decision.lease.hand_over(seconds=60)


def test_a_run_that_has_begun_again_is_not_ended_by_the_news_of_its_end(engine: Engine) -> None:
    """Airflow may tell late of a run's end: a user has cleared it meanwhile, its tasks are under its lease again."""
    begin_run(engine)
    ended_at = time.monotonic()
    time.sleep(0.5)  # apart by more than it takes to ask the store for its time
    begin_run(engine)
    assert not engine.end_run("run", ended_seconds_ago=time.monotonic() - ended_at)
    assert [row["run_id"] for row in engine.status()["leases"]] == ["run"]
    assert engine.end_run("run", ended_seconds_ago=0.0)
    assert not engine.status()["leases"]


def test_a_run_that_waits_again_is_not_ended_by_the_news_of_its_end(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 0})
    assert isinstance(engine.request(engine.run_claim("run"), ticket=True, probed=True).step(), Waiting)
    assert not engine.end_run("run", ended_seconds_ago=1.0)
    assert engine.end_run("run", ended_seconds_ago=0.0)
    assert not engine.status()["waiters"]


def test_a_run_that_begins_again_while_its_host_is_asked_keeps_its_lease(engine: Engine) -> None:
    begin_run(engine)

    def begins_again(_: Any) -> bool:
        begin_run(engine)
        return False

    assert engine.janitor.probe(begins_again) == 0
    assert engine.janitor.probe(lambda _: False) == 1
