"""Rule 9: higher priority first, then first come; who waits is overtaken only for a bounded time."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.engine import Engine
from penstock.request import Request
from penstock.store.admission import claim_row
from penstock.store.contract import Mode, Owner, Result
from situations import Configure, granted, pass_time, queued, waits

HOUR = 3600


def order_of(engine: Engine, holder: Any, asked: dict[str, Request]) -> list[str]:
    """In which order these waiters for one slot get it."""
    order = []
    while asked:
        holder.release()
        (name,) = [name for name, request in asked.items() if not waits(request)]
        order.append(name)
        holder = granted(asked.pop(name).step())
        holder.holds = 1
    return order


def test_each_step_of_priority_is_worth_a_minute(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    asked = {"first": queued(engine, "a")}
    pass_time(store, 90)
    asked["one step, 90 s later"] = queued(engine, "a", priority=1)
    asked["two steps, 90 s later"] = queued(engine, "a", priority=2)
    assert order_of(engine, holder, asked) == ["two steps, 90 s later", "first", "one step, 90 s later"]


def test_no_priority_is_worth_more_than_an_hour(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    asked = {"sixty": queued(engine, "a", priority=60), "a million": queued(engine, "a", priority=10**6)}
    asked |= {"none": queued(engine, "a"), "minus a million": queued(engine, "a", priority=-(10**6))}
    pass_time(store, HOUR + 1)
    asked |= {"late, highest": queued(engine, "a", priority=10**6)}
    expected = ["sixty", "a million", "none", "late, highest", "minus a million"]
    assert order_of(engine, holder, asked) == expected


@pytest.mark.parametrize(("seconds", "overtaken"), [(2 * HOUR - 10, True), (2 * HOUR + 10, False)])
def test_whoever_waits_is_overtaken_only_by_what_comes_within_two_hours(
    store: Any, engine: Engine, configure: Configure, seconds: float, overtaken: bool
) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    lowest = queued(engine, "a", priority=-(10**6))
    pass_time(store, seconds)
    highest = queued(engine, "a", priority=10**6)
    holder.release()
    assert waits(lowest) is overtaken
    assert waits(highest) is not overtaken


def test_a_blocked_waiter_blocks_nobody_who_fits_beside_it(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    engine.acquire(engine.claim("a"))
    blocked = queued(engine, "a", "b", priority=100)
    assert granted(engine.request(engine.claim("b")).step())
    assert waits(blocked)


def test_order_holds_over_a_priority_that_came_after_a_shrink(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 3}})
    leases = [engine.acquire(engine.claim("a")) for _ in range(3)]
    low, high = queued(engine, "a"), queued(engine, "a", priority=5)
    configure(pools={"limits": {"a": 1}})
    assert waits(low)
    assert waits(high)
    for lease in leases:
        assert waits(low)
        assert waits(high)
        lease.release()
    assert waits(low)
    assert granted(high.step())


@pytest.mark.parametrize("grown", [{"a": 2}, {"a": 1, "other": 1}], ids=["grown", "another limit set"])
def test_a_change_of_the_configuration_lets_nobody_overtake(
    engine: Engine, configure: Configure, grown: dict[str, int]
) -> None:
    """A waiter is resolved anew at its own next touch; whoever comes before that comes after it all the same."""
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))
    first = queued(engine, "a")
    configure(pools={"limits": grown})
    if "other" in grown:
        holder.release()
    assert waits(engine.request(engine.claim("a")))
    assert granted(first.step())


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)  # elsewhere no row can be locked
def test_a_newcomer_that_does_not_wait_passes_nobody_whose_row_is_locked_just_then(
    store: Any, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a touch, or a ticket that is renewed: the pass left it out, and what was free went to the newcomer."""
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a"))
    waiter, newcomer, owner = queued(engine, "a"), engine.claim("a"), Owner(engine.session_id())
    version, concurrency = engine.configuration()
    demands = engine.demands(newcomer, concurrency)
    with monkeypatch.context() as patched:
        patched.setattr(store, "_look_after_commit", lambda **_: set())
        lease.release()
    with store.transaction() as tx:
        assert claim_row(tx.connection, waiter.claim_id, lock=True) is not None
        asked = store.acquire(newcomer, demands, version=version, owner=owner, mode=Mode.TRY)
        assert asked.result is Result.NO_ROOM
    assert granted(waiter.step())
