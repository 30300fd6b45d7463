"""Those of one process who wait as one holder: they share one place in the queue, and none costs the others theirs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from penstock.claim import Claim
from penstock.decision import Waiting
from penstock.engine import Engine
from penstock.store.contract import ClaimState
from situations import CALM, Configure, NewEngine, granted, held, refused, waiting, waits

KINDS = pytest.mark.parametrize("kind", ["run", "op"])
LIMIT = "pool:a"


def claim(engine: Engine, kind: str) -> Claim:
    return engine.run_claim("r", "a") if kind == "run" else engine.claim("a", run_id="r", op_id="o")


def beat(engine: Engine) -> None:
    """What the session's thread does now and then: it ends what nobody here answers for."""
    assert engine.store.beat(engine.session_id(), engine.leases.known)
    engine.leases.leave_forgotten(engine.session_id())


@pytest.fixture
def calm(new_engine: NewEngine, configure: Configure) -> Engine:
    configure(pools={"limits": {"a": 1}})
    return new_engine(settings=CALM)


@KINDS
def test_one_that_gives_up_leaves_the_place_to_the_others(calm: Engine, engine: Engine, kind: str) -> None:
    """The place went with it, and the others had to claim again, behind all who had come meanwhile."""
    holder = engine.acquire(engine.claim("a"))
    patient, hasty = (calm.request(claim(calm, kind)) for _ in range(2))
    assert waits(patient)
    assert waits(hasty)
    hasty.withdraw()
    assert waiting(engine, LIMIT) == 1
    holder.release()
    granted(patient.step()).release()
    assert held(engine, LIMIT) == waiting(engine, LIMIT) == 0


@KINDS
def test_the_last_that_gives_up_leaves_nothing(calm: Engine, engine: Engine, kind: str) -> None:
    holder = engine.acquire(engine.claim("a"))
    requests = [calm.request(claim(calm, kind)) for _ in range(3)]
    assert all(waits(request) for request in requests)
    for request in requests:
        assert waiting(engine, LIMIT) == 1
        request.withdraw()
    assert waiting(engine, LIMIT) == 0
    holder.release()
    assert held(engine, LIMIT) == 0
    assert not calm.leases.known()


@KINDS
def test_one_that_gives_up_takes_no_lease_from_another_one(calm: Engine, engine: Engine, kind: str) -> None:
    """Its time-out came when another had just been granted: that one's slot was given away while it worked."""
    holder = engine.acquire(engine.claim("a"))
    patient, hasty = (calm.request(claim(calm, kind)) for _ in range(2))
    assert waits(patient)
    assert waits(hasty)
    holder.release()
    lease = granted(patient.step())
    hasty.withdraw()
    assert held(engine, LIMIT) == 1
    lease.release()
    assert held(engine, LIMIT) == 0


@KINDS
def test_a_cancelled_one_takes_no_lease_from_another_one(calm: Engine, engine: Engine, kind: str) -> None:
    async def both() -> bool:
        holder = engine.acquire(engine.claim("a"))
        patient, hasty = (calm.request(claim(calm, kind)) for _ in range(2))
        assert waits(patient)
        task = asyncio.create_task(hasty.acquire_async())
        while not hasty.queued:
            await asyncio.sleep(0.01)
        calm.wakeups.wake = lambda claim_ids: None  # type: ignore[method-assign]  # it does not hear of the grant
        holder.release()
        lease = granted(patient.step())
        task.cancel()
        await asyncio.wait([task])
        for thread in list(calm._threads._threads if calm._threads is not None else ()):  # until it is undone
            calm.in_thread(lambda: None).result()
            assert thread.is_alive()
        there = held(engine, LIMIT) == 1
        lease.release()
        return there

    assert asyncio.run(both())


@KINDS
def test_a_lease_that_ends_before_the_others_have_joined_it_is_theirs(calm: Engine, engine: Engine, kind: str) -> None:
    """They were told that somebody else had ended their claim."""
    holder = engine.acquire(engine.claim("a"))
    quick, slow = (calm.request(claim(calm, kind)) for _ in range(2))
    assert waits(quick)
    assert waits(slow)
    holder.release()
    quickly = granted(quick.step())
    quickly.release()
    quickly.release()  # once too often, which is no harm
    lease = granted(slow.step())
    beat(calm)
    assert held(engine, LIMIT) == 1
    assert not lease.lost
    lease.release()
    assert held(engine, LIMIT) == 0
    assert not calm.leases.known()


@KINDS
def test_a_lease_that_is_left_to_one_who_gives_up_is_given_back(calm: Engine, engine: Engine, kind: str) -> None:
    holder = engine.acquire(engine.claim("a"))
    quick, slow = (calm.request(claim(calm, kind)) for _ in range(2))
    assert waits(quick)
    assert waits(slow)
    holder.release()
    granted(quick.step()).release()
    slow.withdraw()
    assert held(engine, LIMIT) == 0
    assert not calm.leases.known()


@KINDS
def test_one_that_does_not_wait_costs_none_that_does_its_place(
    store: Any, calm: Engine, engine: Engine, kind: str
) -> None:
    """It was refused, and the next beat ended the waiter that it had found."""
    holder = engine.acquire(engine.claim("a"))
    patient = calm.request(claim(calm, kind))
    assert waits(patient)
    refused(calm.try_acquire(claim(calm, kind)))
    beat(calm)
    assert waiting(engine, LIMIT) == 1
    holder.release()
    granted(patient.step()).release()


def test_a_waiter_that_nobody_answers_for_goes_with_the_next_beat(calm: Engine, engine: Engine) -> None:
    holder = engine.acquire(engine.claim("a"))
    one, two = (calm.request(claim(calm, "op")) for _ in range(2))
    assert isinstance(one.step(), Waiting)
    assert isinstance(two.step(), Waiting)
    for request in (one, two):
        beat(calm)
        assert waiting(engine, LIMIT) == 1
        calm.leases.forget(request.claim_id, request)
    beat(calm)
    assert waiting(engine, LIMIT) == 0
    holder.release()


def test_what_was_lost_is_not_remembered(store: Any, calm: Engine) -> None:
    """The id of each lost lease was, as long as the process lived."""
    lease = calm.acquire(claim(calm, "op"))
    store.end(lease.claim_id, reason="for the test")
    calm.session_is_gone(calm.session_id())
    lease.release()
    assert not calm.leases.known()
    assert ClaimState.HELD not in {row.state for row in store.snapshot().claims}


def test_to_join_costs_no_look_at_every_lease(calm: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand leases in one process each step of a claim looked at all of them."""
    leases = [calm.acquire(calm.claim(run_id="r", op_id=str(n))) for n in range(20)]
    looks, holder = 0, Claim.holder.fget  # type: ignore[attr-defined]

    def counted(self: Claim) -> Any:
        nonlocal looks
        looks += 1
        return holder(self)

    with monkeypatch.context() as patched:
        patched.setattr(Claim, "holder", property(counted))
        assert calm.leases.join(calm.claim(run_id="r", op_id="another")) is None
    assert looks == 1
    for lease in leases:
        lease.release()
