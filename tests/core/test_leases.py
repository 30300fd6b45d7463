"""What a process answers for: nobody ends what somebody has come back for, and what nobody comes back for ends."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from penstock.claim import Claim
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.hookspecs import hookimpl
from penstock.lease import Lease
from situations import CALM, Configure, NewEngine, granted, held, queued, waiting, waits

LIMIT = "pool:a"


def beat(engine: Engine) -> None:
    """What the session's thread does now and then: it ends what nobody here answers for."""
    assert engine.store.beat(engine.session_id(), engine.leases.known)
    engine.leases.leave_forgotten(engine.session_id())


def op(engine: Engine) -> Claim:
    return engine.claim("a", run_id="r", op_id="o")


def cut_off(method: Callable[..., Any]) -> Callable[..., None]:
    """The store does it, and the answer is lost."""

    def done_and_lost(*arguments: Any, **named: Any) -> None:
        method(*arguments, **named)
        raise StoreUnavailable("the answer is lost")

    return done_and_lost


@pytest.fixture
def calm(new_engine: NewEngine, configure: Configure) -> Engine:
    configure(pools={"limits": {"a": 1}})
    return new_engine(settings=CALM)


@pytest.fixture
def forgotten(calm: Engine, monkeypatch: pytest.MonkeyPatch) -> str:
    """The claim of an op that could not be given back: it is held, and the next beat is to end it."""

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    lease = calm.acquire(op(calm))
    with monkeypatch.context() as patched:
        patched.setattr(calm.store, "release", away)
        with pytest.raises(StoreUnavailable):
            lease.release()
    return lease.claim_id


def test_an_op_that_nobody_comes_back_for_goes_with_the_next_beat(calm: Engine, forgotten: str) -> None:
    assert held(calm, LIMIT) == 1
    beat(calm)
    assert held(calm, LIMIT) == 0


@pytest.mark.parametrize("look", [1, 2])
def test_a_beat_leaves_alone_an_op_that_is_joined_while_it_looks(
    calm: Engine, forgotten: str, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """The same op asked again, was given what it had, and lost it: it worked without a slot and was never told."""
    known, looks, leases = calm.leases.known, count(1), list[Lease]()

    def joined_meanwhile() -> set[str]:
        before = known()
        if next(looks) == look:
            leases.append(calm.acquire(op(calm)))
        return before

    with monkeypatch.context() as patched:
        patched.setattr(calm.leases, "known", joined_meanwhile)
        beat(calm)
    assert [lease.claim_id for lease in leases] == [forgotten]
    assert held(calm, LIMIT) == 1
    leases[0].release()
    assert held(calm, LIMIT) == 0


def test_a_beat_leaves_alone_an_op_that_somebody_is_about_to_join(
    calm: Engine, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, asked, answered = calm.store.acquire, threading.Event(), threading.Event()

    def slowly(*arguments: Any, **named: Any) -> Any:
        outcome = acquire(*arguments, **named)
        asked.set()
        assert answered.wait(30)
        return outcome

    monkeypatch.setattr(calm.store, "acquire", slowly)
    with ThreadPoolExecutor(1) as thread:
        joining = thread.submit(calm.acquire, op(calm))
        assert asked.wait(30)
        beat(calm)
        answered.set()
        lease = joining.result(30)
    assert lease.claim_id == forgotten
    assert held(calm, LIMIT) == 1
    lease.release()


def test_a_try_whose_answer_is_lost_costs_no_slot(calm: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process answered for the claim for as long as it lived, though nobody came back for it."""
    with monkeypatch.context() as patched:
        patched.setattr(calm.store, "acquire", cut_off(calm.store.acquire))
        with pytest.raises(StoreUnavailable) as lost:
            calm.try_acquire(calm.claim("a"))
    assert held(calm, LIMIT) == 1
    beat(calm)
    assert held(calm, LIMIT) == 0, f"whoever keeps the error keeps nothing else: {lost}"
    assert not calm.leases.known()


def test_who_is_dropped_without_a_word_leaves_the_queue(calm: Engine, engine: Engine) -> None:
    with engine.hold("a"):
        request = queued(calm, "a")
        beat(calm)
        assert waiting(engine, LIMIT) == 1
        del request
        gc.collect()
        beat(calm)
        assert waiting(engine, LIMIT) == 0
    assert not calm.leases.known()


def test_a_run_that_is_claimed_again_while_its_loss_is_told_is_held(calm: Engine) -> None:
    """What came back was the lease that had just been lost; the new grant went with it."""
    again: list[Lease] = []
    lease = calm.acquire(calm.run_claim("r", "a"))
    lease.on_lost.append(lambda _: again.append(calm.acquire(calm.run_claim("r", "a"))))
    calm.session_is_gone(lease.session_id or "")
    lease.release()
    beat(calm)
    assert lease.lost
    assert [(new.claim_id, new.lost) for new in again] == [(lease.claim_id, False)]
    assert calm.leases.find(lease.claim_id) is again[0]
    assert held(calm, LIMIT) == 1


def test_a_lease_that_is_replaced_before_its_loss_was_told_is_told_of(new_engine: NewEngine) -> None:
    """Another thread claims the run again in the moment between the end of the session and the telling."""
    told, lost = list[Lease](), list[Lease]()

    class Listener:
        @hookimpl
        def penstock_lost(self, lease: Lease) -> None:
            lost.append(lease)

    engine = new_engine(Listener(), settings=CALM)
    lease = engine.acquire(engine.run_claim("r"))
    lease.on_lost.append(told.append)
    lose, engine._session._on_lost = engine._session._on_lost, lambda _: None
    engine.session_is_gone(lease.session_id or "")
    again = engine.acquire(engine.run_claim("r"))
    assert told == lost == [lease]
    lose(lease.session_id or "")
    lease.release()
    assert told == lost == [lease]
    assert engine.leases.find(lease.claim_id) is again is not lease
    again.release()
    assert engine.leases.find(lease.claim_id) is None


def test_one_that_gives_up_takes_no_run_that_its_host_answers_for_from_another_process(
    calm: Engine, engine: Engine, new_engine: NewEngine
) -> None:
    """Both waited for the run's one claim; the run was let in, and its slots were given away while it worked."""
    holder, other = engine.acquire(engine.claim("a")), new_engine(settings=CALM)
    hasty, patient = (each.request(each.run_claim("r", "a"), probed=True) for each in (calm, other))
    assert waits(hasty)
    assert waits(patient)
    holder.release()
    lease = granted(patient.step())
    hasty.withdraw()
    assert held(engine, LIMIT) == 1
    beat(calm)
    assert held(engine, LIMIT) == 1
    lease.release()
    assert held(engine, LIMIT) == 0
