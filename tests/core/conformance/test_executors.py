"""Dagster's executors, case by case: threads that do the ops of runs, each inside `hold`; a gauge counts them."""

from __future__ import annotations

import pytest
from penstock.engine import Engine
from situations import Configure, Gauge, granted, held, in_threads, queued, waits

OPS = 6


class Failed(Exception):
    """What an op of the tests dies of."""


def test_limit_1_never_2_active(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    gauge = Gauge()

    def op(number: int) -> None:
        with engine.hold("foo", run_id="r", op_id=str(number), wait_timeout_seconds=60), gauge:
            assert held(engine, "pool:foo") == 1

    in_threads(OPS, op)
    assert (gauge.entered, gauge.most) == (OPS, 1)


def test_failure_releases(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    gauge = Gauge()

    def op(number: int) -> None:
        with pytest.raises(Failed), engine.hold("foo", run_id="r", op_id=str(number), wait_timeout_seconds=60), gauge:
            raise Failed

    in_threads(OPS, op)
    assert (gauge.entered, gauge.most) == (OPS, 1)
    assert held(engine, "pool:foo") == 0


def test_limit_3_more_than_1_and_at_most_3(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 3}})
    gauge = Gauge()

    def op(number: int) -> bool:
        with engine.hold("foo", run_id="r", op_id=str(number), wait_timeout_seconds=60), gauge:
            return gauge.wait_for(2)

    assert all(in_threads(OPS, op))
    assert 1 < gauge.most <= 3


def test_two_runs_limit_2_never_more_and_reached(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 2}})
    gauge = Gauge()

    def op(number: int) -> bool:
        run_id, op_id = f"run {number % 2}", str(number)
        with engine.hold("foo", run_id=run_id, op_id=op_id, wait_timeout_seconds=60), gauge:
            return gauge.wait_for(2)

    assert all(in_threads(OPS, op))
    assert (gauge.entered, gauge.most) == (OPS, 2)
    assert held(engine, "runs") == 0


def test_another_op_runs_between_the_retries_of_the_first(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    first_try = granted(engine.request(engine.claim("foo", run_id="r", op_id="first", attempt=1)).step())
    other = queued(engine, "foo", run_id="r", op_id="other")
    first_try.release()  # it failed; its retry is a claim of its own, behind the one who waits
    second_try = queued(engine, "foo", run_id="r", op_id="first", attempt=2)
    lease = granted(other.step())
    assert waits(second_try)
    lease.release()
    assert granted(second_try.step())
