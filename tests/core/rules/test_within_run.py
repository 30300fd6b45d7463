"""Rule 7: a run's own ops, counted by op tags; a run may bring limits of its own, fixed by its first claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.errors import ClaimError
from penstock.lease import Lease
from penstock.request import Request
from situations import Configure, granted, held, waits

WAREHOUSE = {"database": "warehouse"}
ONE_AT_THE_WAREHOUSE = {"key": "database", "value": "warehouse", "limit": 1}
UNIQUE = {"applyLimitPerUniqueValue": True}


def run(engine: Engine, run_id: str, within: Mapping[str, Any] | None = None) -> Lease:
    return granted(engine.request(engine.run_claim(run_id, within=within)).step())


def op(engine: Engine, run_id: str, op_id: str, **tags: str) -> Request:
    return engine.request(engine.claim(run_id=run_id, op_id=op_id, tags=tags, in_run=True))


def test_max_concurrent_counts_each_runs_ops_apart(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 1})
    run(engine, "1")
    run(engine, "2")
    first = granted(op(engine, "1", "x").step())
    second = op(engine, "1", "y")
    assert waits(second)
    assert granted(op(engine, "2", "x").step())
    first.release()
    assert granted(second.step())
    assert held(engine, "run_ops:process/process/1") == 1


def test_tag_limits_count_by_op_tags(engine: Engine, configure: Configure) -> None:
    configure(ops={"tag_concurrency_limits": [ONE_AT_THE_WAREHOUSE]})
    run(engine, "1")
    first = granted(op(engine, "1", "x", **WAREHOUSE).step())
    second = op(engine, "1", "y", **WAREHOUSE)
    assert waits(second)
    assert granted(op(engine, "1", "z", database="other").step()).slots == ()
    first.release()
    assert granted(second.step())


def test_tag_limits_per_unique_value(engine: Engine, configure: Configure) -> None:
    configure(ops={"tag_concurrency_limits": [{"key": "table", "value": UNIQUE, "limit": 1}]})
    run(engine, "1")
    granted(op(engine, "1", "x", table="a").step())
    assert waits(op(engine, "1", "y", table="a"))
    assert granted(op(engine, "1", "z", table="b").step())


def test_a_block_in_an_op_is_not_another_op_of_its_run(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 1}, pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    run(engine, "1")
    around = granted(op(engine, "1", "x").step())
    block = engine.claim("b", run_id="1", in_run=True, parent_id=around.claim_id)
    assert [slot.limit for slot in granted(engine.try_acquire(block)).slots] == ["pool:b"]
    late = engine.claim("a", run_id="1", in_run=True, parent_id=around.claim_id)
    assert granted(engine.try_acquire(late)).slots == ()
    assert held(engine, "pool:a") == 1, "its run has it"
    assert held(engine, "run_ops:process/process/1") == 1


def test_an_op_outside_of_runs_is_not_counted(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 1})
    with engine.hold(tags=WAREHOUSE), engine.hold(tags=WAREHOUSE) as lease:
        assert lease.slots == ()


def test_a_runs_own_replace_what_is_configured_and_only_what_they_give(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 1, "tag_concurrency_limits": [ONE_AT_THE_WAREHOUSE]})
    run(engine, "1", {"max_concurrent": 2})
    granted(op(engine, "1", "x", **WAREHOUSE).step())
    assert waits(op(engine, "1", "y", **WAREHOUSE)), "the tag rule is still the configured one"
    assert granted(op(engine, "1", "z").step())
    assert waits(op(engine, "1", "w"))


def test_a_run_may_do_without_what_is_configured(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 0, "tag_concurrency_limits": [ONE_AT_THE_WAREHOUSE]})
    run(engine, "1", {"max_concurrent": None, "tag_concurrency_limits": []})
    for op_id in ("x", "y"):
        assert granted(op(engine, "1", op_id, **WAREHOUSE).step()).slots == ()


def test_a_runs_own_may_be_wider_than_another_runs(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 1})
    run(engine, "wide", {"max_concurrent": 2})
    run(engine, "usual")
    assert [waits(op(engine, "wide", op_id)) for op_id in ("x", "y", "z")] == [False, False, True]
    assert [waits(op(engine, "usual", op_id)) for op_id in ("x", "y")] == [False, True]


def test_the_first_claim_of_a_run_fixes_them(new_engine: Any, engine: Engine) -> None:
    run(engine, "1", {"max_concurrent": 1})
    second = new_engine()
    run(second, "1", {"max_concurrent": 5})
    granted(op(engine, "1", "x").step())
    assert waits(op(second, "1", "y"))


def test_a_change_of_the_configuration_leaves_a_runs_own_alone(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 3})
    run(engine, "own", {"max_concurrent": 1})
    run(engine, "usual")
    granted(op(engine, "own", "x").step())
    granted(op(engine, "usual", "x").step())
    waiter = op(engine, "own", "y")
    assert waits(waiter)
    configure(ops={"max_concurrent": 1})
    usual = op(engine, "usual", "y")
    assert waits(usual), "the configured one is narrower now"
    configure(ops={"max_concurrent": 5})
    assert waits(waiter)
    assert granted(usual.step())
    assert granted(op(engine, "usual", "z").step())


def test_a_new_run_of_the_same_id_brings_its_own_anew(engine: Engine) -> None:
    run(engine, "1", {"max_concurrent": 1}).release()
    run(engine, "1", {"max_concurrent": 2})
    assert [waits(op(engine, "1", op_id)) for op_id in ("x", "y", "z")] == [False, False, True]


@pytest.mark.parametrize(
    ("within", "says"),
    [
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"max_concurent": 1}, "max_concurent"),
        ({"tag_concurrency_limits": [{"key": "a"}]}, "tag_concurrency_limits.0.limit"),
        ({"tag_concurrency_limits": [ONE_AT_THE_WAREHOUSE, ONE_AT_THE_WAREHOUSE]}, "two rules for the same tag"),
    ],
)
@pytest.mark.parametrize("store_kind", ["memory"], indirect=True)  # no store is asked
def test_wrong_ones_are_refused_where_they_are_given(engine: Engine, within: dict[str, Any], says: str) -> None:
    with pytest.raises(ClaimError, match=says):
        engine.run_claim("1", within=within)


def test_names_with_the_marks_of_keys_in_them_stay_apart(engine: Engine, configure: Configure) -> None:
    """`a/b` of run `c` is not `b/c` of run `a`: what means something in a key is encoded."""
    configure(ops={"max_concurrent": 1, "tag_concurrency_limits": [{"key": "k", "value": UNIQUE, "limit": 1}]})
    for run_id in ("a/b", "a%2Fb", "a", "b:k=*:v"):
        run(engine, run_id)
        granted(op(engine, run_id, "x", k="v=*").step())
        assert waits(op(engine, run_id, "y", k="v=*"))
