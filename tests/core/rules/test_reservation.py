"""Rule 9, reservation: wide and many-pool claims do not starve, and free slots idle only for a bounded time."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.engine import Engine
from penstock.lease import Lease
from penstock.store.contract import ClaimState
from situations import Configure, NewEngine, Runs, granted, held, pass_time, queued, reap, refused, waits

AGED = 301.0


def two_holders(engine: Engine, configure: Configure, **limits: int) -> list[Lease]:
    configure(pools={"limits": {"a": 2, **limits}})
    return [engine.acquire(engine.claim("a")) for _ in range(2)]


def test_an_aged_wide_claim_reserves_what_becomes_free(store: Any, engine: Engine, configure: Configure) -> None:
    first, second = two_holders(engine, configure)
    wide = queued(engine, "a:2")
    pass_time(store, AGED)
    first.release()
    assert refused(engine.try_acquire(engine.claim("a", priority=1000))), "newcomers of any priority are bound"
    assert waits(wide)
    assert held(engine, "pool:a") == 1, "a reservation is arithmetic, it holds nothing"
    second.release()
    assert len(granted(wide.step()).slots) == 2


@pytest.mark.parametrize(
    ("seconds", "reserved"),
    [(299, False), (AGED, True), (355, True), (365, False), (415, False), (425, True), (485, False), (545, True)],
)
def test_it_reserves_for_60_s_of_every_120_once_it_is_300_s_old(
    store: Any, engine: Engine, configure: Configure, seconds: float, reserved: bool
) -> None:
    first, _ = two_holders(engine, configure)
    queued(engine, "a:2")
    pass_time(store, seconds)
    first.release()
    assert hasattr(engine.try_acquire(engine.claim("a")), "lease") is not reserved


def test_a_waiter_that_came_later_is_bound_whatever_its_priority(
    store: Any, engine: Engine, configure: Configure
) -> None:
    first, _ = two_holders(engine, configure)
    wide = queued(engine, "a:2")
    later = queued(engine, "a", priority=1000)
    pass_time(store, AGED)
    first.release()
    assert waits(later)
    assert waits(wide)
    pass_time(store, 60)
    assert granted(later.step()), "outside of the reservation grants follow rank"


def test_a_waiter_that_came_earlier_passes_it(store: Any, engine: Engine, configure: Configure) -> None:
    first, _ = two_holders(engine, configure, b=1)
    on_b = engine.acquire(engine.claim("b"))
    earlier = queued(engine, "a", "b")
    wide = queued(engine, "a:2")
    pass_time(store, AGED)
    on_b.release()
    first.release()
    assert granted(earlier.step())
    assert waits(wide)


def test_a_pool_has_one_reserver_the_first_aged_one(store: Any, engine: Engine, configure: Configure) -> None:
    """The second one shares a pool with the first, so it reserves nothing, its other pool included."""
    first, _ = two_holders(engine, configure, b=2)
    engine.acquire(engine.claim("b"))
    wide = queued(engine, "a:2")
    queued(engine, "a:2", "b:2")
    pass_time(store, AGED)
    first.release()
    assert refused(engine.try_acquire(engine.claim("a")))
    assert granted(engine.try_acquire(engine.claim("b")))
    assert waits(wide)


def test_two_reservers_of_different_pools(store: Any, engine: Engine, configure: Configure) -> None:
    first, _ = two_holders(engine, configure, b=2)
    on_b = [engine.acquire(engine.claim("b")) for _ in range(2)]
    queued(engine, "a:2")
    queued(engine, "b:2")
    pass_time(store, AGED)
    first.release()
    on_b[0].release()
    assert refused(engine.try_acquire(engine.claim("a")))
    assert refused(engine.try_acquire(engine.claim("b")))


def test_a_many_pool_claim_reserves_all_its_pools_but_only_what_it_needs(
    store: Any, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1, "b": 3}})
    on_a = engine.acquire(engine.claim("a"))
    both = queued(engine, "a", "b:2")
    pass_time(store, AGED)
    assert granted(engine.try_acquire(engine.claim("b"))), "three free, two reserved"
    assert refused(engine.try_acquire(engine.claim("b")))
    on_a.release()
    assert granted(both.step())


def test_claims_under_a_lease_that_holds_what_the_reserver_waits_for_pass(
    store: Any, engine: Engine, configure: Configure
) -> None:
    """Else the outer one waits for the inner one, which waits for the reserver, which waits for the outer one."""
    configure(pools={"limits": {"a": 2, "b": 1}})
    outer = engine.acquire(engine.claim("b"))
    taken = engine.acquire(engine.claim("a"))
    wide = queued(engine, "a:2", "b")
    pass_time(store, AGED)
    assert refused(engine.try_acquire(engine.claim("a")))
    inner = granted(engine.try_acquire(engine.claim("a", parent_id=outer.claim_id)))
    inner.release()
    waiting_inner = engine.request(engine.claim("a", parent_id=outer.claim_id))
    granted(waiting_inner.step()).release()
    outer.release()
    taken.release()
    assert granted(wide.step())


def test_a_parked_waiter_reserves_nothing(store: Any, engine: Engine, configure: Configure) -> None:
    holders = two_holders(engine, configure)
    wide = queued(engine, "a:2")
    for holder in holders:
        holder.release()
    pass_time(store, 3)
    store.sweep()
    states = {row.claim.claim_id: row.state for row in store.snapshot().claims}
    assert states[wide.claim_id] is ClaimState.PARKED
    engine.acquire(engine.claim("a"))
    pass_time(store, AGED)
    assert granted(engine.try_acquire(engine.claim("a")))


def test_a_dead_waiter_reserves_nothing(
    store: Any, engine: Engine, new_engine: NewEngine, configure: Configure
) -> None:
    """From when its session has been reaped; until then nobody can tell it from a live one."""
    first, _ = two_holders(engine, configure)
    dead = new_engine()
    queued(dead, "a:2")
    dead._session._stop.set()  # it beats no more
    pass_time(store, AGED)
    reap(store)
    first.release()
    assert granted(engine.try_acquire(engine.claim("a")))


def test_a_newcomer_takes_its_place_behind_an_aged_waiter_and_what_is_left_beside_it(
    store: Any, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 4}})
    holders = [engine.acquire(engine.claim("a:2")) for _ in range(2)]
    wide = queued(engine, "a:3")
    pass_time(store, AGED)
    holders[0].release()
    newcomer = engine.request(engine.claim("a", priority=1000))
    assert waits(newcomer), "two are free, three are reserved"
    assert waits(wide)
    holders[1].release()
    assert len(granted(wide.step()).slots) == 3
    assert granted(newcomer.step()), "the one that is left"


def test_however_many_a_reservation_bars_other_pools_go_on(store: Any, engine: Engine, configure: Configure) -> None:
    """A pass weighed the first hundred of all pools, who were all barred: the other pools idled for a minute."""
    configure(pools={"limits": {"a": 10, "b": 1}})
    on_a, on_b = [engine.acquire(engine.claim("a")) for _ in range(10)], engine.acquire(engine.claim("b"))
    queued(engine, "a:10")
    narrow = [queued(engine, "a") for _ in range(120)]
    beside = queued(engine, "b")
    pass_time(store, AGED)
    on_a[0].release()
    on_b.release()
    assert granted(beside.step())
    assert waits(narrow[0])


def test_an_impossible_waiter_reserves_nothing(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 3}})
    holders = [engine.acquire(engine.claim("a")) for _ in range(3)]
    wide = queued(engine, "a:3")
    configure(pools={"limits": {"a": 2}})
    assert waits(wide)
    pass_time(store, AGED)
    holders[0].release()
    holders[1].release()
    assert granted(engine.try_acquire(engine.claim("a")))


def test_a_waiter_that_the_run_total_bars_reserves_nothing(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}}, runs={"max_concurrent_runs": 1})
    runs = Runs(engine)
    runs.come("1", "a")
    runs.come("2", "a:2")
    assert runs.started == ["1"]
    pass_time(store, AGED)
    assert granted(engine.try_acquire(engine.claim("a")))


def test_the_run_total_is_never_reserved(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}}, runs={"max_concurrent_runs": 2})
    engine.acquire(engine.claim("a"))
    runs = Runs(engine)
    runs.come("wide", "a:2")
    runs.come("one")
    pass_time(store, AGED)
    runs.come("two")
    assert runs.started == ["one", "two"], "no place is kept for the run that waits for a pool"


def test_a_stream_of_narrow_claims_does_not_starve_a_wide_one(store: Any, engine: Engine, configure: Configure) -> None:
    """Two slots, always somebody who wants one, each for 40 s: the wide claim has both after 300 s and one hold."""
    narrow = two_holders(engine, configure)
    wide = queued(engine, "a:2")
    waited = 0
    while waits(wide):
        assert waited < 300 + 40, "the bound"
        pass_time(store, 20)
        waited += 20
        if narrow:
            narrow.pop(0).release()
        if hasattr(decision := engine.try_acquire(engine.claim("a", priority=1000)), "lease"):
            narrow.append(decision.lease)
    assert waited > 300
