"""Dagster's slots of pools, case by case, on our stores: same situation, same outcome, unless a docstring says so."""

from __future__ import annotations

from typing import Any

import pytest
from penstock import changes
from penstock.config import Concurrency, PoolLimit
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.report import all_limits
from pydantic import ValidationError
from situations import Configure, granted, held, in_threads, queued, refused, waiting, waits


def test_claim(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    lease = granted(engine.request(engine.claim("foo", run_id="1", op_id="a")).step())
    assert [(slot.limit, slot.slot) for slot in lease.slots] == [("pool:foo", 1)]
    assert held(engine, "pool:foo") == 1


def test_block(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    granted(engine.request(engine.claim("foo", run_id="1", op_id="a")).step())
    blocked = queued(engine, "foo", run_id="1", op_id="b")
    assert waits(blocked)
    assert (held(engine, "pool:foo"), waiting(engine, "pool:foo")) == (1, 1)


def test_free_for_a_run(engine: Engine, configure: Configure) -> None:
    """All that a run's ops hold is freed, and nothing of other runs'."""
    configure(pools={"limits": {"foo": 4}})
    for run_id in ("1", "2"):
        for op_id in ("a", "b"):
            granted(engine.request(engine.claim("foo", run_id=run_id, op_id=op_id)).step())
    blocked = queued(engine, "foo", run_id="2", op_id="c")
    for row in engine.snapshot().claims:
        if row.claim.run_id == "1":
            assert engine.store.end(row.claim.claim_id, reason="freed by hand")
    assert granted(blocked.step())
    assert held(engine, "pool:foo") == 3
    assert {row.claim.run_id for row in engine.snapshot().claims} == {"2"}


def test_two_pools(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1, "bar": 1}})
    foo, bar = (granted(engine.request(engine.claim(pool)).step()) for pool in ("foo", "bar"))
    blocked = queued(engine, "foo")
    bar.release()
    assert waits(blocked)
    foo.release()
    assert granted(blocked.step())


def test_priority_then_oldest(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    holder = engine.acquire(engine.claim("foo"))
    asked = {name: queued(engine, "foo", priority=prio) for name, prio in (("a", 0), ("b", 1), ("c", 0), ("d", 5))}
    order = []
    while asked:
        holder.release()
        (name,) = [name for name, request in asked.items() if not waits(request)]
        order.append(name)
        holder = granted(asked.pop(name).step())
        holder.holds = 1
    assert order == ["d", "b", "a", "c"]


def test_newcomer_blocked(engine: Engine, configure: Configure) -> None:
    """A slot that was just freed belongs to the one who waits, not to who comes next."""
    configure(pools={"limits": {"foo": 1}})
    holder = engine.acquire(engine.claim("foo"))
    first = queued(engine, "foo")
    holder.release()
    newcomer = queued(engine, "foo")
    assert granted(first.step())
    assert waits(newcomer)


def test_newcomer_admitted_when_there_is_room(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 3}})
    holders = [engine.acquire(engine.claim("foo")) for _ in range(3)]
    first = queued(engine, "foo")
    holders[0].release()
    holders[1].release()
    assert granted(engine.request(engine.claim("foo")).step())
    assert granted(first.step())
    assert held(engine, "pool:foo") == 3


def test_grow_grants(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    engine.acquire(engine.claim("foo"))
    first, second, third = (queued(engine, "foo") for _ in range(3))
    configure(pools={"limits": {"foo": 3}})
    assert [waits(request) for request in (first, second, third)] == [False, False, True]


def test_a_granted_unacknowledged_waiter_that_leaves_hands_on(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    holder = engine.acquire(engine.claim("foo"))
    leaver, next_one = queued(engine, "foo"), queued(engine, "foo")
    holder.release()
    leaver.withdraw()
    assert granted(next_one.step())
    assert held(engine, "pool:foo") == 1


@pytest.mark.parametrize("limit", [-1, 10_001])
def test_minus_1_and_10001_refused(engine: Engine, configure: Configure, limit: int) -> None:
    configure(pools={"limits": {"foo": 1}})
    with pytest.raises(ValidationError):
        configure(pools={"limits": {"foo": limit}})
    with pytest.raises(ValidationError):
        changes.set_pool(engine, "foo", PoolLimit.model_validate(limit))
    assert engine.configuration(fresh=True)[1].pools.limits["foo"].limit == 1


def test_10000_taken(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 10_000}})
    assert len(granted(engine.try_acquire(engine.claim("foo:10000"))).slots) == 10_000
    assert refused(engine.try_acquire(engine.claim("foo")))


def test_5_to_1_with_3_held(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 5}})
    leases = [engine.acquire(engine.claim("foo")) for _ in range(3)]
    configure(pools={"limits": {"foo": 1}})
    assert held(engine, "pool:foo") == 3
    waiter = queued(engine, "foo")
    for left in (2, 1):
        leases.pop().release()
        assert held(engine, "pool:foo") == left
        assert waits(waiter)
    leases.pop().release()
    assert granted(waiter.step())
    assert refused(engine.try_acquire(engine.claim("foo")))


def test_1_to_4(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    engine.acquire(engine.claim("foo"))
    assert refused(engine.try_acquire(engine.claim("foo")))
    configure(pools={"limits": {"foo": 4}})
    for _ in range(3):
        assert granted(engine.try_acquire(engine.claim("foo")))
    assert refused(engine.try_acquire(engine.claim("foo")))


def test_run_ids_listed(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 2, "bar": 1}})
    for run_id in ("1", "2"):
        engine.acquire(engine.claim("foo", run_id=run_id, op_id="o"))
    engine.acquire(engine.claim("bar", run_id="3", op_id="o"))
    queued(engine, "foo", run_id="4", op_id="o")
    status = engine.status()
    of_foo = {row["run_id"] for row in status["leases"] if "pool:foo" in {slot["limit"] for slot in row["slots"]}}
    assert of_foo == {"1", "2"}
    assert [row["run_id"] for row in status["waiters"]] == ["4"]


def test_100_ops_on_5_slots_all_drain_and_never_exceed_5(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 5}})
    requests = [engine.request(engine.claim("foo", run_id="r", op_id=str(number))) for number in range(100)]
    inside = [decision.lease for request in requests if isinstance(decision := request.step(), Granted)]
    assert len(inside) == 5
    left, drained = requests[5:], 0
    while inside:
        inside.pop(0).release()
        drained += 1
        assert held(engine, "pool:foo") <= 5
        ready = engine.store.to_touch([request.claim_id for request in left])
        inside += [granted(request.step()) for request in left if request.claim_id in ready]
        left = [request for request in left if request.claim_id not in ready]
        assert len(inside) <= 5
    assert (drained, left) == (100, [])
    assert held(engine, "pool:foo") == 0


def test_limit_0_listed_and_blocks(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 0}})
    request = queued(engine, "foo")
    (row,) = [row for row in engine.status()["limits"] if row["key"] == "pool:foo"]
    assert (row["capacity"], row["held"], row["waiting"]) == (0, 0, 1)
    assert waits(request)


def _listed(engine: Engine) -> dict[str, Any]:
    rows = all_limits(engine.store.limit_rows(), engine.configuration(fresh=True)[1])
    return {row["key"]: (row["capacity"], row["source"]) for row in rows}


@pytest.mark.parametrize(
    ("default", "outcome", "listed"),
    [(None, [True, True], (None, "none")), (0, [False, False], (0, "default")), (1, [True, False], (1, "default"))],
    ids=["none", "0", "1"],
)
def test_default_none_0_1(
    engine: Engine, configure: Configure, default: int | None, outcome: list[bool], listed: tuple[Any, str]
) -> None:
    """In Dagster 0 means unlimited in the run queue; here 0 closes."""
    configure(pools={"default_limit": default})
    assert [isinstance(engine.try_acquire(engine.claim("foo")), Granted) for _ in range(2)] == outcome
    granted(engine.request(engine.claim("free")).step()) if default is None else engine.request(
        engine.claim("foo")
    ).step()
    assert _listed(engine)["pool:foo"] == listed


def test_default_1_2_none(engine: Engine, configure: Configure) -> None:
    """Pools that live on the default follow it; explicit ones never."""
    configure(pools={"default_limit": 1, "limits": {"own": 1}})
    engine.acquire(engine.claim("foo"))
    engine.acquire(engine.claim("own"))
    assert refused(engine.try_acquire(engine.claim("foo")))
    configure(pools={"default_limit": 2, "limits": {"own": 1}})
    assert granted(engine.try_acquire(engine.claim("foo")))
    assert refused(engine.try_acquire(engine.claim("foo")))
    assert refused(engine.try_acquire(engine.claim("own")))
    assert _listed(engine)["pool:foo"] == (2, "default")
    configure(pools={"limits": {"own": 1}})
    assert granted(engine.try_acquire(engine.claim("foo")))
    assert granted(engine.try_acquire(engine.claim("foo")))
    assert refused(engine.try_acquire(engine.claim("own")))
    assert _listed(engine)["pool:foo"] == (None, "none")
    assert held(engine, "pool:foo") == 4


def test_a_configuration_without_pools_is_as_one_with_none(engine: Engine, configure: Configure) -> None:
    configure(pools=None)
    assert Concurrency.model_validate({"pools": None}) == Concurrency()
    assert all(in_threads(4, lambda _: granted(engine.try_acquire(engine.claim("foo")))))
