"""Dagster's context around an op, case by case: `hold` here."""

from __future__ import annotations

import pytest
from penstock.engine import Engine
from situations import Configure, granted, held, queued, waits


def test_exit_frees(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    with engine.hold("foo", run_id="r", op_id="a"):
        assert held(engine, "pool:foo") == 1
        waiter = queued(engine, "foo", run_id="s", op_id="a")
    assert granted(waiter.step())
    assert {row.claim.run_id for row in engine.snapshot().claims} == {"s"}


def test_unlimited_passes(engine: Engine) -> None:
    with engine.hold("foo"), engine.hold("foo"), engine.hold():
        assert held(engine, "pool:foo") == 2


def test_an_error_inside_frees(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})

    def fail() -> None:
        with engine.hold("foo", run_id="r", op_id="a"):
            raise ZeroDivisionError(held(engine, "pool:foo"))

    with pytest.raises(ZeroDivisionError, match="1"):
        fail()
    assert held(engine, "pool:foo") == held(engine, "runs") == 0
    assert engine.status()["leases"] == engine.status()["waiters"] == []


def _order(engine: Engine, configure: Configure, *priorities: tuple[int, int]) -> list[int]:
    """In which order waiters of these (run, op) priorities are let in; a host adds the two up, as Dagster does."""
    configure(pools={"limits": {"foo": 1}})
    holder = engine.acquire(engine.claim("foo"))
    asked = {
        number: queued(engine, "foo", run_id=str(number), op_id="o", priority=of_run + of_op)
        for number, (of_run, of_op) in enumerate(priorities)
    }
    order = []
    while asked:
        holder.release()
        (number,) = [number for number, request in asked.items() if not waits(request)]
        order.append(number)
        holder = granted(asked.pop(number).step())
        holder.holds = 1
    return order


def test_op_priority(engine: Engine, configure: Configure) -> None:
    assert _order(engine, configure, (0, 0), (0, 1000), (0, 5)) == [1, 2, 0]


def test_run_priority(engine: Engine, configure: Configure) -> None:
    assert _order(engine, configure, (0, 0), (1, 0), (10, 0)) == [2, 1, 0]


def test_the_sum_of_run_and_op_priority(engine: Engine, configure: Configure) -> None:
    assert _order(engine, configure, (0, 4), (3, 3), (5, -2)) == [1, 0, 2]


def test_run_priority_of_a_run_claim(engine: Engine, configure: Configure) -> None:
    """A run's own priority is that of its claim: who of the runs starts first."""
    configure(runs={"max_concurrent_runs": 1})
    holder = engine.acquire(engine.run_claim("before"))
    low, high = (engine.request(engine.run_claim(run_id, priority=p)) for run_id, p in (("low", 0), ("high", 1)))
    assert waits(low)
    assert waits(high)
    holder.release()
    assert waits(low)
    assert granted(high.step())
