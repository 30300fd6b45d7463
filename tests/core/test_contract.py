"""One contract, every store: what an engine sees is the same in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from penstock import Blocked, ImpossibleClaim, LeaseLost, Skipped, WaitTimeout, changes
from penstock.claim import Claim
from penstock.config import Concurrency, PoolLimit
from penstock.decision import Granted, Refused, Waiting
from penstock.engine import Engine
from penstock.errors import ConfigChanged, StoreUnavailable
from penstock.store.contract import ClaimState, Event, Owner, Result
from penstock.store.database import again_if_undone
from situations import until

SECOND = 1_000_000
Configure = Callable[..., None]
NewEngine = Callable[..., Engine]


def held(engine: Engine, key: str) -> int:
    return {row.key: row.held for row in engine.store.limit_rows()}.get(key, 0)


def test_slots_are_taken_and_given_back(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"database": 2}})
    with engine.hold("database:2") as lease:
        assert [slot.slot for slot in lease.slots] == [1, 2]
        assert held(engine, "pool:database") == 2
        assert not lease.lost
    assert held(engine, "pool:database") == 0


def test_all_or_nothing(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    with engine.hold("b"):
        assert isinstance(engine.try_acquire(engine.claim("a", "b")), Refused)
        assert held(engine, "pool:a") == 0


def test_a_waiter_holds_nothing_and_is_granted_at_release(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    first = engine.acquire(engine.claim("a"))
    request = engine.request(engine.claim("a", "b"))
    assert isinstance(request.step(), Waiting)
    assert held(engine, "pool:b") == 0
    first.release()
    decision = request.step()
    assert isinstance(decision, Granted)
    assert {slot.limit for slot in decision.lease.slots} == {"pool:a", "pool:b"}
    decision.lease.release()


def test_first_come_first_served(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    requests = [engine.request(engine.claim("a")) for _ in range(3)]
    for request in requests:
        assert isinstance(request.step(), Waiting)
    order = []
    for _ in requests:
        holder.release()
        for number, request in enumerate(requests):
            if number not in order and isinstance(decision := request.step(), Granted):
                order.append(number)
                holder = decision.lease
    holder.release()
    assert order == [0, 1, 2]


def test_higher_priority_first(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    low, high = (engine.request(engine.claim("a", priority=priority)) for priority in (0, 1))
    assert isinstance(low.step(), Waiting)
    assert isinstance(high.step(), Waiting)
    holder.release()
    assert isinstance(low.step(), Waiting)
    assert isinstance(high.step(), Granted)


def test_a_newcomer_does_not_overtake(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    waiter = engine.request(engine.claim("a"))
    waiter.step()
    holder.release()
    assert isinstance(engine.request(engine.claim("a")).step(), Waiting)
    assert isinstance(waiter.step(), Granted)


def test_a_blocked_waiter_blocks_nobody_who_fits_beside_it(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    with engine.hold("a"):
        wide = engine.request(engine.claim("a:2"))
        assert isinstance(wide.step(), Waiting)
        assert isinstance(engine.request(engine.claim("a")).step(), Granted)
        assert isinstance(engine.try_acquire(engine.claim("a")), Refused)


def test_impossible_claims_are_refused_at_once(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with pytest.raises(ImpossibleClaim, match="Ask for less"):
        engine.acquire(engine.claim("a:2"))


def test_a_closed_limit_makes_waiters(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 0}})
    request = engine.request(engine.claim("a"))
    assert isinstance(request.step(), Waiting)
    assert [str(reason) for reason in engine.reasons(request.claim_id)] == ["a: closed (limit 0)"]
    configure(pools={"limits": {"a": 1}})
    assert isinstance(request.step(), Granted)


def test_pools_without_limit_never_queue_and_are_shown_in_use(engine: Engine) -> None:
    with engine.hold("free:3"), engine.hold("free"):
        assert held(engine, "pool:free") == 4
    assert held(engine, "pool:free") == 0


def test_limiting_a_pool_in_use_counts_its_holders(engine: Engine, configure: Configure) -> None:
    with engine.hold("a") as first:
        configure(pools={"limits": {"a": 1}})
        assert isinstance(engine.try_acquire(engine.claim("a")), Refused)
        first.release()
        assert isinstance(engine.try_acquire(engine.claim("a")), Granted)


def test_growing_admits_waiters_at_once(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        request = engine.request(engine.claim("a"))
        request.step()
        configure(pools={"limits": {"a": 2}})
        assert isinstance(request.step(), Granted)


def test_shrinking_drains_and_never_grows(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 5}})
    leases = [engine.acquire(engine.claim("a")) for _ in range(3)]
    configure(pools={"limits": {"a": 1}})
    waiter = engine.request(engine.claim("a"))
    for lease in leases:
        assert isinstance(waiter.step(), Waiting)
        lease.release()
    assert isinstance(waiter.step(), Granted)
    assert held(engine, "pool:a") == 1
    configure(pools={"limits": {"a": 2}})
    assert isinstance(engine.try_acquire(engine.claim("a")), Granted)
    assert isinstance(engine.try_acquire(engine.claim("a")), Refused)


def test_deleting_a_limit_falls_to_the_default_and_frees_its_waiters(engine: Engine, configure: Configure) -> None:
    configure(pools={"default_limit": 2, "limits": {"a": 1}})
    with engine.hold("a"):
        request = engine.request(engine.claim("a"))
        request.step()
        changes.set_pool(engine, "a", None)
        assert isinstance(request.step(), Granted)
        assert isinstance(engine.try_acquire(engine.claim("a")), Refused)


def test_deleting_and_creating_again_keeps_holders_counted(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        changes.set_pool(engine, "a", None)
        changes.set_pool(engine, "a", PoolLimit(limit=1))
        assert isinstance(engine.try_acquire(engine.claim("a")), Refused)
    assert isinstance(engine.try_acquire(engine.claim("a")), Granted)


def test_epochs_only_grow(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    epochs = []
    for _ in range(3):
        with engine.hold("a") as lease:
            epochs.append(lease.fences["pool:a"][1])
    changes.set_pool(engine, "a", None)
    changes.set_pool(engine, "a", PoolLimit(limit=1))
    with engine.hold("a") as lease:
        epochs.append(lease.fences["pool:a"][1])
    assert epochs == sorted(set(epochs))


def test_run_total_counts_runs_over_all_deployments(new_engine: NewEngine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 2})
    one, two = new_engine(host="airflow", deployment="a"), new_engine(host="prefect", deployment="p")
    leases = [one.acquire(one.run_claim("r")), two.acquire(two.run_claim("r"))]
    assert isinstance(one.try_acquire(one.run_claim("r2")), Refused)
    leases[1].release()
    assert isinstance(one.try_acquire(one.run_claim("r2")), Granted)


def test_run_tag_limits_all_must_have_room(engine: Engine, configure: Configure) -> None:
    configure(
        runs={
            "tag_concurrency_limits": [
                {"key": "team", "value": "analytics", "limit": 1},
                {"key": "team", "limit": 2},
                {"key": "table", "value": {"applyLimitPerUniqueValue": True}, "limit": 1},
            ]
        }
    )
    granted = engine.acquire(engine.run_claim("1", tags={"team": "analytics", "table": "x"}))
    assert {slot.limit for slot in granted.slots} == {
        "runs",
        "run_tag:team=analytics",
        "run_tag:team",
        "run_tag:table=*:x",
    }
    assert isinstance(engine.try_acquire(engine.run_claim("2", tags={"team": "analytics"})), Refused)
    assert isinstance(engine.try_acquire(engine.run_claim("3", tags={"table": "x"})), Refused)
    assert isinstance(engine.try_acquire(engine.run_claim("4", tags={"team": "ml", "table": "y"})), Granted)
    assert isinstance(engine.try_acquire(engine.run_claim("5", tags={"team": "ml"})), Refused)
    assert isinstance(engine.try_acquire(engine.run_claim("6", tags={"other": "x"})), Granted)


def test_a_run_lease_says_of_which_attempt_and_priority_it_is(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 1})
    claim = replace(engine.run_claim("r", priority=5), attempt=2)
    with engine.acquire(claim), engine.acquire(replace(claim, attempt=3, priority=0)):
        lease = engine.store.run_lease(claim.holder or "")
        assert lease is not None
        assert (lease.attempt, lease.priority) == (2, 5)


def test_a_run_lease_is_shared_and_ends_with_its_last_member(new_engine: NewEngine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 1})
    one, two, other = new_engine(), new_engine(), new_engine()
    first, second = one.acquire(one.run_claim("r")), two.acquire(two.run_claim("r"))
    assert first.claim_id == second.claim_id
    first.release()
    assert isinstance(other.try_acquire(other.run_claim("s")), Refused)
    second.release()
    assert isinstance(other.try_acquire(other.run_claim("s")), Granted)


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("capacity", [0, 1])
def test_a_ticket_takes_no_run_out_of_the_hands_of_a_session(
    store: Any, new_engine: NewEngine, configure: Configure, capacity: int, probed: bool
) -> None:
    """Held or waiting, it became one with a deadline: the first of its members to leave ended it for all."""
    configure(runs={"max_concurrent_runs": capacity})
    engine, worker = new_engine(), new_engine()
    engine.request(engine.run_claim("r")).step()
    before = store.snapshot().claims
    ticket = worker.request(worker.run_claim("r"), ticket=True, probed=probed)
    assert isinstance(ticket.step(), Waiting)
    assert ticket.elsewhere
    assert store.snapshot().claims == before
    store.close_session(engine.session_id())
    configure(runs={"max_concurrent_runs": 1})
    ticket = worker.request(worker.run_claim("r"), ticket=True, probed=probed)
    assert isinstance(ticket.step(), Granted)
    assert [row.session_ids for row in store.snapshot().claims] == [()]


def test_a_session_of_a_run_may_leave_it_to_the_host(store: Any, engine: Engine) -> None:
    engine.acquire(claim := engine.run_claim("r"))
    owner = Owner(engine.session_id(), probe_seconds=60.0)
    outcome = store.touch(claim.claim_id, (), version=store.configuration().version, owner=owner)
    assert outcome.result is Result.HELD
    assert [row.claim.claim_id for row in store.probed()] == [claim.claim_id]


def test_same_holder_same_lease_counted_in_the_process(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    claim = engine.claim("a", run_id="r", op_id="o")
    outer = engine.acquire(claim)
    inner = engine.acquire(engine.claim("a", run_id="r", op_id="o"))
    assert inner is outer
    inner.release()
    assert held(engine, "pool:a") == 1
    outer.release()
    assert held(engine, "pool:a") == 0


def test_the_same_op_in_another_live_process_waits(new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 5}})
    one, two = new_engine(), new_engine()
    lease = one.acquire(one.claim("a", run_id="r", op_id="o"))
    request = two.request(two.claim("a", run_id="r", op_id="o"))
    assert isinstance(request.step(), Waiting)
    lease.release()
    request = two.request(two.claim("a", run_id="r", op_id="o"))
    assert isinstance(request.step(), Granted)


def test_a_lease_is_handed_over_with_new_epochs(new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    one, two = new_engine(), new_engine()
    lease = one.acquire(one.claim("a", run_id="r", op_id="o"))
    before = lease.fences["pool:a"][1]
    lease.hand_over(seconds=60)
    adopted = two.acquire(two.claim("a", run_id="r", op_id="o"))
    assert adopted.claim_id == lease.claim_id
    assert adopted.fences["pool:a"][1] > before
    lease.holds = 1
    assert not one.store.release(lease.claim_id, lease.session_id)
    adopted.release()
    assert held(one, "pool:a") == 0


def test_a_runs_lease_is_left_for_another_process_by_the_last_that_holds_it(
    new_engine: NewEngine, configure: Configure
) -> None:
    configure(runs={"max_concurrent_runs": 1})
    one, two, three = new_engine(), new_engine(), new_engine()
    leases = [engine.acquire(engine.run_claim("r")) for engine in (one, two)]
    with pytest.raises(LeaseLost):
        leases[0].hand_over(seconds=60)
    leases[1].release()
    leases[0].hand_over(seconds=60)
    one.close()
    assert held(two, "runs") == 1
    adopted = three.acquire(three.run_claim("r"))
    assert adopted.claim_id == leases[0].claim_id
    adopted.release()
    assert held(two, "runs") == 0


def test_a_waiter_handed_over_keeps_its_place(new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    task, trigger, rival = new_engine(), new_engine(), new_engine()
    holder = rival.acquire(rival.claim("a"))
    request = task.request(task.claim("a", run_id="r", op_id="o"))
    assert isinstance(request.step(), Waiting)
    later = rival.request(rival.claim("a"))
    assert isinstance(later.step(), Waiting)
    request.hand_over(ticket_seconds=60)
    holder.release()
    assert isinstance(later.step(), Waiting)
    by_ticket = trigger.request(Claim.from_dict(request.claim.as_dict()), ticket=True)
    granted = by_ticket.step()
    assert isinstance(granted, Granted)
    resumed = new_engine()
    adopted = resumed.acquire(resumed.claim("a", run_id="r", op_id="o"))
    assert adopted.claim_id == granted.lease.claim_id
    adopted.release()
    assert isinstance(later.step(), Granted)


def test_not_granted_before_it_is_eligible_but_keeps_its_rank(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    early = engine.request(engine.claim("a", run_id="r", op_id="early"))
    early.step()
    early.hand_over(ticket_seconds=60, eligible_after_seconds=10)
    holder.release()
    beside = engine.request(engine.claim("a")).step()
    assert isinstance(beside, Granted), "no slot idles for one that is not eligible yet"
    late = engine.request(engine.claim("a"))
    late.step()
    store.clock_shift += 11 * SECOND
    beside.lease.release()
    by_ticket = engine.request(Claim.from_dict(early.claim.as_dict()), ticket=True)
    assert isinstance(by_ticket.step(), Granted)
    assert isinstance(late.step(), Waiting)


def test_a_dead_session_frees_its_slots_after_ttl_and_grace(
    store: Any, new_engine: NewEngine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    dead, other = new_engine(), new_engine()
    dead.acquire(dead.claim("a"))
    waiter = other.request(other.claim("a"))
    assert isinstance(waiter.step(), Waiting)
    dead._session._stop.set()  # it beats no more
    store.clock_shift += 31 * SECOND
    other.store.beat(other.session_id(), other.leases.known)
    store.sweep()
    assert isinstance(waiter.step(), Waiting), "the grace is not over"
    store.clock_shift += 3 * SECOND
    store.sweep()
    assert isinstance(waiter.step(), Granted)
    assert [row.event for row in store.history() if row.event is Event.EXPIRED] == [Event.EXPIRED]


def test_a_beat_of_a_reaped_session_says_lost(store: Any, new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    engine = new_engine()
    lease = engine.acquire(engine.claim("a"))
    session_id = engine.session_id()
    engine._session._stop.set()
    store.clock_shift += 60 * SECOND
    store.sweep()
    assert not store.beat(session_id, lambda: {lease.claim_id})
    engine.session_is_gone(session_id)
    assert lease.lost
    assert engine.session_id() != session_id


def test_a_beat_ends_claims_that_the_process_does_not_know(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    version, concurrency = engine.configuration(fresh=True)
    claim = engine.claim("a")  # as if the reply to this acquire had been lost
    owner = Owner(engine.session_id())
    store.acquire(claim, engine.demands(claim, concurrency), version=version, owner=owner)
    assert held(engine, "pool:a") == 1
    assert store.beat(engine.session_id(), set)
    assert held(engine, "pool:a") == 0


def test_acquire_is_idempotent_and_a_tombstone_is_never_granted(
    store: Any, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 2}})
    version, concurrency = engine.configuration(fresh=True)
    claim, owner = engine.claim("a"), Owner(engine.session_id())

    def acquire() -> Any:
        return store.acquire(claim, engine.demands(claim, concurrency), version=version, owner=owner)

    assert acquire() == acquire()
    assert held(engine, "pool:a") == 1
    assert store.release(claim.claim_id, owner.session_id)
    assert not store.release(claim.claim_id, owner.session_id)
    assert acquire().result is Result.ENDED
    assert held(engine, "pool:a") == 0


def state_of(store: Any, claim_id: str) -> ClaimState:
    return next(row.state for row in store.snapshot().claims if row.claim.claim_id == claim_id)


def swept(store: Any) -> bool:
    store.sweep()
    return True


def test_an_unacknowledged_grant_is_parked_and_comes_back_with_its_rank(
    store: Any, new_engine: NewEngine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine, stuck = new_engine(), new_engine()
    holder = engine.acquire(engine.claim("a"))
    slow = stuck.request(stuck.claim("a"))
    slow.step()
    second = engine.request(engine.claim("a"))
    second.step()
    holder.release()
    until(lambda: state_of(store, slow.claim_id) is ClaimState.GRANTED)  # by this pass, or one of a process that beats
    store.clock_shift += 3 * SECOND
    until(lambda: swept(store) and state_of(store, slow.claim_id) is ClaimState.PARKED)
    granted = second.step()
    assert isinstance(granted, Granted)
    third = engine.request(engine.claim("a"))
    third.step()
    assert isinstance(slow.step(), Waiting)
    granted.lease.release()
    assert isinstance(third.step(), Waiting)
    assert isinstance(slow.step(), Granted)


def parked_after(new_engine: NewEngine, waited: int, late: int) -> bool:
    """Whether a waiter that was granted after so many µs, and has said nothing for so many more, has been parked."""
    engine, silent = new_engine(), new_engine()
    holder = engine.acquire(engine.claim("a"))
    waiter = silent.request(silent.claim("a"))
    waiter.step()
    engine.store.clock_shift += waited
    holder.release()
    until(lambda: state_of(engine.store, waiter.claim_id) is ClaimState.GRANTED)
    engine.store.clock_shift += late
    engine.store.sweep()
    return state_of(engine.store, waiter.claim_id) is ClaimState.PARKED


@pytest.mark.parametrize(
    ("waited", "late", "parked"),
    [
        (0, 1_900_000, True),  # half a second, whoever is granted at once
        (1 * SECOND, 1_900_000, True),  # and half of what was waited: so seldom may it look by then
        (20 * SECOND, 700_000, False),
        (20 * SECOND, 2_200_000, True),  # 2 s at most
    ],
)
def test_a_grant_may_go_unacknowledged_for_the_longer_the_longer_it_was_waited_for(
    store: Any, new_engine: NewEngine, configure: Configure, waited: int, late: int, parked: bool
) -> None:
    configure(pools={"limits": {"a": 1}})
    assert parked_after(new_engine, waited, late) is parked


def test_a_ticket_ends_at_its_deadline(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a", run_id="r", op_id="o"))
    lease.hand_over(seconds=5)
    store.clock_shift += 6 * SECOND
    store.sweep()
    assert held(engine, "pool:a") == 0


def test_a_probed_run_outlives_processes_and_ends_when_the_host_says_so(
    store: Any, new_engine: NewEngine, configure: Configure
) -> None:
    from penstock.hookspecs import hookimpl

    class Host:
        answer: bool | None = None

        @hookimpl
        def penstock_holder_alive(self, claim: Any) -> bool | None:
            return self.answer if claim.claim.run_id == "r" else None

    configure(runs={"max_concurrent_runs": 1})
    host = Host()
    engine = new_engine(host)
    assert isinstance(engine.request(engine.run_claim("r"), probed=True).step(), Granted)
    store.clock_shift += 3600 * SECOND
    engine.store.beat(engine.session_id(), engine.leases.known)
    store.sweep()
    assert held(engine, "runs") == 1
    assert engine.janitor.probe() == 0
    host.answer = True  # longer than a run is kept of which nobody can say anything: its day begins anew
    store.clock_shift += 22 * 3600 * SECOND
    assert engine.janitor.probe() == 0
    store.clock_shift += 22 * 3600 * SECOND
    store.sweep()
    assert held(engine, "runs") == 1
    host.answer = False
    assert engine.janitor.probe() == 1
    assert held(engine, "runs") == 0


def test_end_run_frees_the_run_lease(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 1})
    assert isinstance(engine.request(engine.run_claim("r"), probed=True).step(), Granted)
    assert engine.end_run("r")
    assert not engine.end_run("r")
    assert held(engine, "runs") == 0


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)  # the oracle's is our own
@pytest.mark.parametrize("jump_seconds", [40, 86_400, -86_400])
def test_a_clock_that_jumps_reaps_nobody_at_once(
    store: Any, engine: Engine, configure: Configure, jump_seconds: int
) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    lease = engine.acquire(engine.claim("a"))
    ticket = engine.request(engine.claim("b"), ticket=True)
    assert isinstance(ticket.step(), Granted)
    engine._session._stop.set()
    store.sweep()
    store.clock_shift += jump_seconds * SECOND
    for _ in range(3):  # the next looks are as patient as the first
        assert store.sweep().expired == ()
    assert held(engine, "pool:a") == held(engine, "pool:b") == 1
    # Nor does a dead one live longer for it than a TTL, wherever the clock went.
    (session,) = store.snapshot().sessions
    assert session.expires_at <= store_now(store) + engine.settings.session_ttl_seconds * SECOND
    assert store.beat(lease.session_id, lambda: {lease.claim_id})


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_clock_that_is_set_back_keeps_no_waiter_from_its_slot(
    store: Any, engine: Engine, configure: Configure
) -> None:
    """It had come at a time that, by the clock as it is now, is an hour away."""
    configure(pools={"limits": {"a": 1}})
    engine._session._stop.set()
    lease = engine.acquire(engine.claim("a"))
    request = engine.request(engine.claim("a"))
    assert isinstance(request.step(), Waiting)
    store.sweep()
    store.clock_shift -= 3600 * SECOND
    store.sweep()
    lease.release()
    assert isinstance(request.step(), Granted)


@pytest.mark.parametrize(
    "store_kind", ["postgresql", "mariadb"], indirect=True
)  # on SQLite nobody else is at work then
def test_a_jump_of_the_clock_is_borne_though_somebody_else_grants_just_then(
    store: Any, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    engine._session._stop.set()
    store.sweep()
    store.clock_shift += 3600 * SECOND

    @again_if_undone
    def sweep_while_somebody_else_grants() -> None:
        with store.transaction(grant_lock=True):
            store.sweep()

    sweep_while_somebody_else_grants()
    for _ in range(2):
        assert store.sweep().expired == ()


def store_now(store: Any) -> int:
    now: int = store.snapshot().now
    return now


def test_try_acquire_leaves_no_waiter(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        refused = engine.try_acquire(engine.claim("a"))
        assert isinstance(refused, Refused)
        assert str(refused.reasons[0]) == "a: 1 of 1 held by process/process"
        assert engine.status()["waiters"] == []


def test_on_blocked_skip_and_fail(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        with pytest.raises(Skipped):
            engine.acquire(engine.claim("a"), on_blocked="skip")
        with pytest.raises(Blocked, match="1 of 1 held"):
            engine.acquire(engine.claim("a"), on_blocked="fail")


def test_a_wait_timeout_withdraws(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        with pytest.raises(WaitTimeout, match="1 of 1 held"):
            engine.acquire(engine.claim("a"), wait_timeout_seconds=0.1)
        assert engine.status()["waiters"] == []


def test_a_cancelled_wait_withdraws(engine: Engine, configure: Configure) -> None:
    from penstock.waiting import Cancelled

    configure(pools={"limits": {"a": 1}})
    stop = threading.Event()
    stop.set()
    with engine.hold("a"):
        with pytest.raises(Cancelled):
            engine.acquire(engine.claim("a"), cancelled=stop)
        assert engine.status()["waiters"] == []


def test_a_claim_ended_by_somebody_else_tells_its_waiter(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        request = engine.request(engine.claim("a"))
        request.step()
        engine.store.end(request.claim_id, reason="by hand")
        with pytest.raises(LeaseLost, match="claim again"):
            request.step()


def test_a_new_rule_reaches_those_who_wait(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 1})
    first = engine.acquire(engine.run_claim("1", tags={"team": "x"}))
    request = engine.request(engine.run_claim("2", tags={"team": "x"}))
    request.step()
    configure(runs={"max_concurrent_runs": 1, "tag_concurrency_limits": [{"key": "team", "limit": 0}]})
    first.release()
    assert isinstance(request.step(), Waiting)
    configure(runs={"max_concurrent_runs": 1})
    assert isinstance(request.step(), Granted)


def test_apply_commits_only_if_nobody_else_did(engine: Engine) -> None:
    changes.apply(engine, Concurrency(), expected_version=0)
    with pytest.raises(ConfigChanged):
        changes.apply(engine, Concurrency(), expected_version=0)


def test_a_change_cut_off_in_the_middle_is_finished_by_a_janitor(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        request = engine.request(engine.claim("a"))
        request.step()
        block = Concurrency.model_validate({"pools": {"limits": {"a": 2}}})
        engine.store.configure(block.document(), expected_version=1, by="x", origin="y")  # and killed here
        engine.janitor.upkeep()
        assert engine.store.sweep().settled
        assert isinstance(request.step(), Granted)


def test_history_replays_to_the_current_state(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    with engine.hold("a"):
        pass
    lease = engine.acquire(engine.claim("a:2"))
    now: dict[str, int] = {}
    for row in engine.store.history():
        sign = {Event.GRANTED: 1, Event.RELEASED: -1, Event.EXPIRED: -1, Event.PARKED: -1}.get(row.event, 0)
        for key, slots in row.slots.items():
            now[key] = now.get(key, 0) + sign * slots
    assert now == {row.key: row.held for row in engine.store.limit_rows()} == {"pool:a": 2}
    lease.release()


def test_status_says_who_holds_and_who_waits(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a", run_id="r", op_id="o") as lease:
        request = engine.request(engine.claim("a", op_id="w"))
        request.step()
        status = engine.status()
    assert set(status) == {"limits", "leases", "waiters", "sessions"}
    holder = next(row for row in status["leases"] if row["op_id"] == "o")
    assert holder["slots"] == [{"limit": "pool:a", "slot": 1, "epoch": lease.slots[0].epoch}]
    (waiter,) = status["waiters"]
    assert waiter["state"] == "waiting"
    assert waiter["position"] == 1
    assert waiter["blocked_by"] == [{"limit": "pool:a", "capacity": 1, "held": 1, "holders": [holder["claim_id"]]}]
    assert status["sessions"][0]["expires_at"].endswith("Z")


def test_hooks_are_really_gone_through(new_engine: NewEngine, configure: Configure) -> None:
    from dataclasses import replace

    from penstock.hookspecs import hookimpl
    from penstock.rules import Demand, Source

    seen: list[str] = []

    class Plugin:
        @hookimpl
        def penstock_enrich_claim(self, claim: Claim) -> Claim:
            return replace(claim, url="https://host.example/1")

        @hookimpl
        def penstock_adjust_demands(self, claim: Claim, demands: Any, concurrency: Any) -> Any:
            return [*demands, Demand("pool:extra", 1, *(concurrency.pools.default_limit, Source.DEFAULT))]

        @hookimpl
        def penstock_granted(self, lease: Any, waited_seconds: float) -> None:
            seen.append("granted")

        @hookimpl
        def penstock_waiting(self, claim: Claim, waiting: Any) -> None:
            seen.append(f"waiting for {waiting.reasons[0].limit}")

        @hookimpl
        def penstock_released(self, lease: Any, held_seconds: float) -> None:
            seen.append("released")

        @hookimpl
        def penstock_limit_changed(self, key: str, capacity: int | None) -> None:
            seen.append(f"{key}={capacity}")

    configure(pools={"default_limit": 1})
    engine = new_engine(Plugin())
    with engine.hold("a") as lease:
        assert lease.claim.url == "https://host.example/1"
        assert {slot.limit for slot in lease.slots} == {"pool:a", "pool:extra"}
        with pytest.raises(WaitTimeout):
            engine.acquire(engine.claim("b"), wait_timeout_seconds=0.05)
    changes.set_pool(engine, "z", PoolLimit(limit=3))
    assert seen == ["granted", "waiting for pool:extra", "released", "pool:z=3"]


async def _cancel_a_wait(engine: Engine) -> None:
    import asyncio

    waiting = asyncio.create_task(engine.acquire_async(engine.claim("a")))
    while not engine.status()["waiters"]:
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_async_holds_and_a_cancelled_wait_leaves_nothing(engine: Engine, configure: Configure) -> None:
    import asyncio

    configure(pools={"limits": {"a": 1}})

    async def both() -> None:
        async with engine.hold_async("a"):
            assert held(engine, "pool:a") == 1
            await _cancel_a_wait(engine)

    asyncio.run(both())
    deadline = time.monotonic() + 5
    while engine.status()["waiters"] or held(engine, "pool:a"):  # it may have been granted before it was withdrawn
        assert time.monotonic() < deadline


def test_a_release_that_the_store_did_not_take_is_made_good_by_the_next_beat(
    store: Any, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease stayed known to the process, and so its slots were held until the process ended."""
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a"))

    def away(*_: object) -> bool:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "release", away)
        with pytest.raises(StoreUnavailable):
            lease.release()
    assert held(engine, "pool:a") == 1
    assert store.beat(engine.session_id(), engine.leases.known)
    assert held(engine, "pool:a") == 0


def test_a_signal_raised_into_a_wait_leaves_no_waiter(engine: Engine, configure: Configure) -> None:
    """What a signal handler raises (KeyboardInterrupt, a host's termination) left the waiter behind."""

    class Interrupting(threading.Event):
        def is_set(self) -> bool:
            raise KeyboardInterrupt

    configure(pools={"limits": {"a": 1}})
    with engine.hold("a"):
        with pytest.raises(KeyboardInterrupt):
            engine.acquire(engine.claim("a"), cancelled=Interrupting())
        assert engine.status()["waiters"] == []


def test_a_beat_leaves_alone_what_is_acquired_while_it_looks(store: Any, engine: Engine, configure: Configure) -> None:
    """A thread's claim, granted between the look at the process's claims and that at the store's, was ended unseen."""
    configure(pools={"limits": {"a": 1}})
    leases = []

    def known() -> set[str]:
        before = engine.leases.known()
        leases.append(engine.acquire(engine.claim("a")))
        return before

    assert store.beat(engine.session_id(), known)
    assert held(engine, "pool:a") == 1
    leases[0].release()


def test_a_session_cannot_release_what_it_handed_over(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a", run_id="r", op_id="o"))
    lease.hand_over(seconds=60)
    assert not store.release(lease.claim_id, lease.session_id)
    assert held(engine, "pool:a") == 1
    assert store.release(lease.claim_id, None)
