"""Rule 16: a setting gives each op of an installation, or those that match a pattern, a pool of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from penstock import rules
from penstock.claim import NAME_MAX_CHARACTERS, Claim, check_pool_name
from penstock.engine import Engine
from penstock.settings import Settings
from situations import CALM, Configure, NewEngine, granted, held, refused


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """An installation whose ops of the DAG `etl` have a pool each."""
    return new_engine(settings=replace(CALM, pool_per_op=("etl.*",)), deployment="prod")


def op(engine: Engine, step: str | None, run_id: str, *pools: str) -> Claim:
    return engine.claim(*pools, run_id=run_id, op_id="o", step=step)


def test_each_op_has_one_slot_over_all_its_runs(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 5}})
    lease = granted(engine.try_acquire(op(engine, "etl.load", "1", "db")))
    assert set(lease.fences) == {"pool:op/prod/etl.load", "pool:db"}
    assert refused(engine.try_acquire(op(engine, "etl.load", "2", "db")))
    assert granted(engine.try_acquire(op(engine, "etl.extract", "2", "db"))), "another op, another pool"
    lease.release()
    assert granted(engine.try_acquire(op(engine, "etl.load", "3", "db")))


def test_those_that_are_left_out_are_unlimited(engine: Engine) -> None:
    for step in ("web.load", None):
        leases = [granted(engine.try_acquire(op(engine, step, run_id))) for run_id in ("1", "2", "3")]
        assert [lease.slots for lease in leases] == [()] * 3


def test_another_deployment_has_pools_of_its_own(engine: Engine, new_engine: NewEngine) -> None:
    other = new_engine(settings=replace(CALM, pool_per_op=("*",)), deployment="staging")
    for each in (engine, other):
        assert granted(each.try_acquire(op(each, "etl.load", "1")))
    assert (held(engine, "pool:op/prod/etl.load"), held(engine, "pool:op/staging/etl.load")) == (1, 1)


def test_their_limit_is_1_then_the_default_then_their_own(engine: Engine, configure: Configure) -> None:
    def room(run_ids: str) -> list[bool]:
        found = [engine.try_acquire(op(engine, "etl.load", run_id)) for run_id in run_ids]
        return [hasattr(decision, "lease") for decision in found]

    assert room("ab") == [True, False]
    configure(pools={"default_limit": 2})
    assert room("cd") == [True, False]
    configure(pools={"default_limit": 2, "limits": {"op/prod/etl.load": 3}})
    assert room("ef") == [True, False]
    (pool,) = [row for row in engine.status()["limits"] if row["key"] == "pool:op/prod/etl.load"]
    assert (pool["capacity"], pool["held"], pool["source"]) == (3, 3, "explicit")


@pytest.mark.parametrize("step", ["a b", "etl.load:5", "x" * 400, "tab\there", "ünï", "a/b"])
def test_every_step_makes_a_usable_name_and_no_two_long_ones_the_same(step: str) -> None:
    names = [
        rules.op_pool(Claim(kind="op", host="h", deployment="d", step=each)) for each in (step, f"{step}{'y' * 300}")
    ]
    assert names[0] != names[1]
    for name in names:
        assert check_pool_name(name) == name
        assert len(name) <= NAME_MAX_CHARACTERS


def test_no_two_steps_share_a_pool() -> None:
    """`a b` and `a_b` did, and one of them waited for the other without a word."""
    steps = ["a b", "a_b", "a%20b", "a\tb", "a:1", "a_1", "a%3A1"]
    assert len({rules.op_pool(Claim(kind="op", host="h", deployment="d", step=step)) for step in steps}) == len(steps)


def test_the_setting_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_POOL_PER_OP", "etl.*, web.load,,")
    assert Settings.from_environment().pool_per_op == ("etl.*", "web.load")
    monkeypatch.delenv("PENSTOCK_POOL_PER_OP")
    assert Settings.from_environment().pool_per_op == ()
