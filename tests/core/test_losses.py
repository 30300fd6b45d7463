"""What a process finds that was stopped, or cut off, for too long, and what it leaves behind when the store is away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from penstock import LeaseLost
from penstock.decision import Granted, Waiting
from penstock.engine import Engine
from penstock.errors import StoreUnavailable, WaitTimeout
from penstock.hookspecs import hookimpl
from penstock.settings import Settings
from penstock.store import reaping
from penstock.store.contract import ClaimState
from situations import held, until

SECOND = 1_000_000


def reap(store: Any) -> None:
    """Let time pass until every session has expired; in steps, for a clock that jumps is not believed."""
    for _ in range(12):
        store.clock_shift += 5 * SECOND
        store.sweep()


def test_a_waiter_whose_session_expired_waits_on_as_a_new_claim(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    away, holder = new_engine(), new_engine()
    lease = holder.acquire(holder.claim("a"))
    request = away.request(away.claim("a"))
    assert isinstance(request.step(), Waiting)
    first = request.claim_id
    away._session._stop.set()  # stopped: no beat goes out
    store.end(lease.claim_id, reason="for the test")
    reap(store)
    assert first not in {row.claim.claim_id for row in store.snapshot().claims}
    decision = request.step()
    assert isinstance(decision, Granted)
    assert request.claim_id != first, "an id that has ended is never granted again"
    decision.lease.release()


def test_a_claim_that_expired_before_its_answer_came_costs_nobody_else_the_lease(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    engine = new_engine()
    request = engine.request(engine.claim("a"))
    acquire = store.acquire
    store.acquire = lambda *arguments, **named: acquire(*arguments, **named) and 1 / 0  # the answer is lost
    try:
        request.step()
    except ZeroDivisionError:
        store.acquire = acquire
    engine._session._stop.set()
    reap(store)
    engine.session_is_gone(engine.session_id())
    other = engine.acquire(engine.claim("b"))  # under a new session
    decision = request.step()
    assert isinstance(decision, Granted)
    assert not other.lost
    states = {row.claim.claim_id: row.state for row in store.snapshot().claims}
    assert states[other.claim_id] is states[decision.lease.claim_id] is ClaimState.HELD


@pytest.mark.parametrize("op_id", [None, "o"])
def test_what_could_not_be_released_is_free_as_soon_as_the_store_answers_again(
    store: Any,
    new_engine: Callable[..., Engine],
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    op_id: str | None,
) -> None:
    """Not only at the next beat, which here is in an hour."""
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(settings=Settings(session_ttl_seconds=3 * 3600))
    lease = engine.acquire(engine.claim("a", run_id="r", op_id=op_id))

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "release", away)
        with pytest.raises(StoreUnavailable):
            lease.release()
    until(lambda: not held(engine, "pool:a"))


def wait_on_a_loop(engine: Engine, request: Any, loses: Callable[[], None]) -> None:
    async def wait() -> None:
        waiting = asyncio.create_task(request.acquire_async())
        while not request.queued:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(loses)
        engine.wakeups.wake([request.claim_id])
        await waiting

    asyncio.run(wait())


def wait_step_by_step(_: Engine, request: Any, loses: Callable[[], None]) -> None:
    assert isinstance(request.step(), Waiting)
    loses()
    request.step()


@pytest.mark.parametrize("wait", [wait_on_a_loop, wait_step_by_step])
def test_a_waiter_whose_run_is_lost_leaves_the_queue_at_once(
    store: Any, engine: Engine, configure: Callable[..., None], wait: Callable[..., None]
) -> None:
    """It stood there until the next beat, could be granted, and was shown."""
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    run = engine.acquire(engine.run_claim("run"))
    request = engine.request(engine.claim("a", run_id="run", op_id="op", in_run=True))
    with pytest.raises(LeaseLost, match="claim the run again"):
        wait(engine, request, lambda: store.end(run.claim_id, reason="for the test"))
    assert engine.status()["waiters"] == []


def test_a_ticket_whose_run_is_lost_keeps_its_place_for_who_comes_back(
    store: Any, engine: Engine, configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    run = engine.acquire(engine.run_claim("run"))
    request = engine.request(engine.claim("a", run_id="run", op_id="op", in_run=True), ticket=True)
    with pytest.raises(LeaseLost):
        wait_step_by_step(engine, request, lambda: store.end(run.claim_id, reason="for the test"))
    assert [row["claim_id"] for row in engine.status()["waiters"]] == [request.claim_id]


def test_a_store_that_goes_away_before_it_has_said_why_one_waits_ends_no_wait(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred task failed whose trigger was about to tell who held the slot when the store was cut off."""
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a"))
    reasons, told = engine.reasons, list[object]()

    def away_at_first(claim_id: str) -> object:
        monkeypatch.setattr(engine, "reasons", reasons)
        lease.release()
        raise StoreUnavailable("cut off")

    monkeypatch.setattr(engine, "reasons", away_at_first)
    monkeypatch.setattr(engine, "settings", replace(engine.settings, store_retry_seconds=60.0))
    request = engine.request(engine.claim("a"))
    request.tell, request.tell_after_seconds = told.append, (0.0,)
    request.acquire(wait_timeout_seconds=60).release()


def test_a_run_that_ends_while_its_waiter_is_told_why_it_waits_is_lost(
    store: Any, engine: Engine, configure: Callable[..., None]
) -> None:
    """It had been said that the run was never claimed, an error for good; the host is to claim it again."""
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    run = engine.acquire(engine.run_claim("run"))
    request = engine.request(engine.claim("a", run_id="run", in_run=True))
    request.tell, request.tell_after_seconds = lambda _: store.end(run.claim_id, reason="by hand"), (0.0,)
    with pytest.raises(LeaseLost):
        request.acquire(wait_timeout_seconds=60)
    assert engine.status()["waiters"] == []


def test_a_wait_that_times_out_while_the_store_is_away_says_so(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("cut off")

    configure(pools={"limits": {"a": 1}})
    held = engine.acquire(engine.claim("a"))
    request = engine.request(engine.claim("a"))
    assert isinstance(request.step(), Waiting)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "settings", replace(engine.settings, store_retry_seconds=60.0))
        for name in ("acquire", "touch", "release"):
            patched.setattr(engine.store, name, away)
        with pytest.raises(WaitTimeout):
            request.acquire(wait_timeout_seconds=0.1)
    held.release()
    assert request.claim_id not in engine.leases.known()


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_clock_that_is_set_between_a_sweeps_look_and_its_reaping_costs_nobody_a_lease(
    store: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = engine.acquire(engine.claim("a", run_id="r", op_id="o"))
    ticket.hand_over(seconds=1)
    lease = engine.acquire(engine.claim("b"))
    store.clock_shift += 2 * SECOND  # there is something to reap
    look = store._look_for_dead

    def look_and_jump() -> Any:
        seen = look()
        store.clock_shift += 3600 * SECOND
        return seen

    look()
    monkeypatch.setattr(store, "_look_for_dead", look_and_jump)
    store.sweep()
    assert {row.claim.claim_id for row in store.snapshot().claims} >= {lease.claim_id}
    assert not lease.lost


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_clock_that_is_set_ahead_ends_nobodys_wait(
    store: Any, engine: Engine, configure: Callable[..., None]
) -> None:
    """What the store's clock said of the wait counted: its time was up an hour early."""
    configure(pools={"limits": {"a": 1}})
    held, request = engine.acquire(engine.claim("a")), engine.request(engine.claim("a"))
    assert request.acquire_within(0.0, wait_timeout_seconds=600) is None
    store.clock_shift += 3600 * SECOND
    assert request.acquire_within(0.0, wait_timeout_seconds=600) is None
    held.release()
    lease = request.acquire(wait_timeout_seconds=600)
    assert lease.waited_seconds < 600
    lease.release()


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("ticket", [False, True])
def test_what_was_written_while_the_clock_was_wrong_for_a_moment_is_not_reaped(
    store: Any, engine: Engine, ticket: bool
) -> None:
    """Whoever looked before and after saw no jump, and ended the leases of those that beat in between."""
    lease = engine.acquire(engine.claim("a", run_id="r", op_id="o"))
    engine._session._stop.set()  # its looks would see the jump
    store.sweep()
    store.clock_shift -= 3600 * SECOND
    if ticket:
        lease.hand_over(seconds=60)
    else:
        assert store.beat(lease.session_id, engine.leases.known)
    store.clock_shift += 3600 * SECOND
    for _ in range(3):
        assert store.sweep().expired == ()
    assert [row.claim.claim_id for row in store.snapshot().claims] == [lease.claim_id]


def test_a_slot_whose_grant_nobody_heard_of_is_freed_though_its_claim_went_on_without_limits(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under on_store_error=run the claim went on, and the process kept its slot alive as long as it lived."""
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(settings=Settings(on_store_error="run"))
    acquire = store.acquire

    def cut_off(*arguments: Any, **named: Any) -> None:
        acquire(*arguments, **named)
        raise StoreUnavailable("the answer is lost")

    with monkeypatch.context() as patched:
        patched.setattr(store, "acquire", cut_off)
        lease = engine.acquire(engine.claim("a"))
    assert lease.unlimited
    assert held(engine, "pool:a") == 1
    lease.release()
    assert store.beat(engine.session_id(), engine.leases.known)
    assert held(engine, "pool:a") == 0


def test_an_interrupt_is_not_taken_for_a_store_that_is_away(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C came out of the wait as StoreUnavailable, which whoever tries again takes for a reason to do so."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("cut off")

    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a"))
    request = engine.request(engine.claim("a"))
    with monkeypatch.context() as patched:
        patched.setattr("penstock.waiting.Wait.pause", interrupted)
        patched.setattr(engine.store, "release", away)
        with pytest.raises(KeyboardInterrupt):
            request.acquire()
    assert request.claim_id not in engine.leases.known()
    lease.release()


def test_the_plugins_hear_of_a_loss_that_the_holder_has_seen_first(new_engine: Callable[..., Engine]) -> None:
    """Who looks at `lease.lost` in a loop sees it some tenths of a second before the process's own watch."""

    lost: list[Any] = []

    class Listener:
        @hookimpl
        def penstock_lost(self, lease: Any) -> None:
            lost.append(lease)

    engine = new_engine(Listener())
    lease = engine.acquire(engine.claim("a"))
    engine._session._good_at -= 10**6
    assert lease.lost
    engine.session_is_gone(engine.session_id())
    until(lambda: bool(lost))
    assert lost == [lease]


def test_nothing_is_asked_of_the_store_on_the_event_loop(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why a ticket waits was read on the loop when its time was up before it had been told: all else stood still."""
    configure(pools={"limits": {"a": 1}})
    lease, threads, reasons = engine.acquire(engine.claim("a")), list[int](), engine.store.reasons

    def noted(claim_id: str) -> Any:
        threads.append(threading.get_ident())
        return reasons(claim_id)

    monkeypatch.setattr(engine.store, "reasons", noted)
    request = engine.request(engine.claim("a"), ticket=True)
    assert asyncio.run(request.acquire_ticket_async(0.01)) is None
    assert threads
    assert threading.get_ident() not in threads
    request.withdraw()
    lease.release()


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_more_dead_than_one_statement_names_are_all_ended_at_once(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With runs before their late pools, which go with them though another statement finds them."""
    monkeypatch.setattr(reaping, "AT_ONCE", 2)
    configure(pools={"limits": {"a": 5, "late": {"limit": 3, "granularity": "run"}}})
    dead = new_engine()
    ops = [dead.acquire(dead.claim("a")) for _ in range(5)]
    runs = [dead.acquire(dead.run_claim(f"r{number}")) for number in range(3)]
    for run in runs:
        dead.acquire(dead.claim("late", run_id=run.claim.run_id, op_id="o", in_run=True))
    assert held(dead, "pool:late") == 3
    dead._session._stop.set()  # no beat goes out any more
    store.clock_shift += 40 * SECOND
    store._jumps = reaping.ClockJumps()  # time went on, no clock was set
    ended = {one.claim.claim_id for one in store.sweep().expired}
    assert ended >= {lease.claim_id for lease in [*ops, *runs]}
    assert not store.snapshot().claims
    assert not any(row.held for row in store.limit_rows())
