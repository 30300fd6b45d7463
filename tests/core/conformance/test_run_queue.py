"""Dagster's run queue, case by case, on our engine: same situation, same outcome, unless a docstring says otherwise.

Dagster looks at all queued runs once in a while; here a run asks when it comes. A run "starts" when it has its lease.
"""

from __future__ import annotations

from typing import Any

from penstock import rules
from penstock.engine import Engine
from situations import Configure, NewEngine, Runs, barred_by, granted, held, room, waits

UNIQUE = {"applyLimitPerUniqueValue": True}


def test_queued_only(engine: Engine, configure: Configure) -> None:
    """Only runs that have asked are started: one that is merely known to its host is nobody's business."""
    configure(runs={"max_concurrent_runs": 10})
    runs = Runs(engine)
    engine.run_claim("not queued")
    runs.come("queued")
    assert runs.started == ["queued"]
    assert held(engine, "runs") == 1


def _max_runs(engine: Engine, configure: Configure, in_progress: int) -> int:
    """How many of five more runs start beside so many, where 4 may run."""
    configure(runs={"max_concurrent_runs": max(4, in_progress)})
    others, runs = Runs(engine), Runs(engine)
    for number in range(in_progress):
        others.come(f"in progress {number}")
    configure(runs={"max_concurrent_runs": 4})
    for number in range(5):
        runs.come(f"queued {number}")
    assert len(others.started) == in_progress
    assert held(engine, "runs") == in_progress + len(runs.started)
    return len(runs.started)


def test_max_runs_0(engine: Engine, configure: Configure) -> None:
    assert _max_runs(engine, configure, 0) == 4


def test_max_runs_1(engine: Engine, configure: Configure) -> None:
    assert _max_runs(engine, configure, 1) == 3


def test_max_runs_5(engine: Engine, configure: Configure) -> None:
    """Five run where four may, since the total was lowered: none is stopped, and none starts."""
    assert _max_runs(engine, configure, 5) == 0


def test_max_concurrent_runs_0(engine: Engine, configure: Configure) -> None:
    """Dagster takes 0 for a total like any other, and so do we: no run starts."""
    configure(runs={"max_concurrent_runs": 0})
    runs = Runs(engine)
    runs.come("1")
    assert runs.started == []
    assert [str(reason) for reason in engine.reasons(runs.requests["1"].claim_id)] == ["runs: closed (limit 0)"]


def test_max_runs_minus_1(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": -1})
    runs = Runs(engine)
    for number in range(11):
        runs.come(str(number))
    assert len(runs.started) == 11


def test_priority_3_0_minus_1(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 1})
    runs = Runs(engine)
    runs.come("before")
    runs.come("default")
    runs.come("low", priority=-1)
    runs.come("high", priority=3)
    order = []
    for run_id in ("before", "high", "default", "low"):
        order += runs.started
        runs.end(run_id)
    assert order == ["before", "high", "default", "low"]


def test_malformed_priority_is_0(engine: Engine, configure: Configure) -> None:
    """Dagster reads the priority from a tag; here it is a number of the claim, and a tag is only a tag."""
    configure(runs={"max_concurrent_runs": 1})
    runs = Runs(engine)
    runs.come("before")
    runs.come("malformed", tags={"dagster/priority": "foobar"})
    runs.come("later")
    runs.end("before")
    assert runs.started == ["malformed"]


def test_tag_limit_by_value(engine: Engine, configure: Configure) -> None:
    configure(runs={"tag_concurrency_limits": [{"key": "database", "value": "tiny", "limit": 1}]})
    runs = Runs(engine)
    runs.come("tiny 1", tags={"database": "tiny"})
    runs.come("tiny 2", tags={"database": "tiny"})
    runs.come("large 1", tags={"database": "large"})
    assert runs.started == ["tiny 1", "large 1"]


def _by_key_only(engine: Engine, configure: Configure, rule: dict[str, Any]) -> None:
    configure(runs={"tag_concurrency_limits": [rule]})
    runs = Runs(engine)
    runs.come("tiny 1", tags={"database": "tiny"})
    runs.come("tiny 2", tags={"database": "tiny"})
    runs.come("large 1", tags={"database": "large"})
    assert runs.started == ["tiny 1", "tiny 2"]


def test_tag_limit_by_key_only(engine: Engine, configure: Configure) -> None:
    _by_key_only(engine, configure, {"key": "database", "limit": 2})


def test_tag_limit_by_key_only_as_dagster_also_writes_it(engine: Engine, configure: Configure) -> None:
    rule = {"key": "database", "limit": 2, "value": {"applyLimitPerUniqueValue": False}}
    _by_key_only(engine, configure, rule)


def test_several_rules(engine: Engine, configure: Configure) -> None:
    rules_ = [{"key": "database", "value": "tiny", "limit": 1}, {"key": "user", "value": "johann", "limit": 2}]
    configure(runs={"tag_concurrency_limits": rules_})
    runs = Runs(engine)
    runs.come("1", tags={"database": "tiny", "user": "johann"})
    runs.come("2", tags={"database": "tiny"})
    runs.come("3", tags={"user": "johann"})
    runs.come("4", tags={"user": "johann"})
    assert runs.started == ["1", "3"]


def test_overlapping_key_and_key_with_value(engine: Engine, configure: Configure) -> None:
    configure(runs={"tag_concurrency_limits": [{"key": "foo", "limit": 2}, {"key": "foo", "value": "bar", "limit": 1}]})
    runs = Runs(engine)
    for run_id, value in (("1", "bar"), ("2", "bar"), ("3", "other"), ("4", "other")):
        runs.come(run_id, tags={"foo": value})
    assert runs.started == ["1", "3"]


def test_per_unique_value(engine: Engine, configure: Configure) -> None:
    configure(runs={"tag_concurrency_limits": [{"key": "foo", "limit": 1, "value": UNIQUE}]})
    runs = Runs(engine)
    runs.come("1", tags={"foo": "bar"})
    runs.come("2", tags={"foo": "bar"})
    assert runs.started == ["1"]
    runs.come("3", tags={"foo": "other"})
    runs.come("4", tags={"foo": "other"})
    assert runs.started == ["1", "3"]


def test_per_unique_value_with_a_looser_second_rule(engine: Engine, configure: Configure) -> None:
    configure(
        runs={"tag_concurrency_limits": [{"key": "foo", "limit": 1, "value": UNIQUE}, {"key": "foo", "limit": 2}]}
    )
    runs = Runs(engine)
    for run_id, value in (("1", "bar"), ("2", "bar"), ("3", "other"), ("4", "other-2")):
        runs.come(run_id, tags={"foo": value})
    assert runs.started == ["1", "3"]


def test_per_unique_value_with_a_tighter_second_rule(engine: Engine, configure: Configure) -> None:
    second = {"key": "foo", "limit": 1, "value": "bar"}
    configure(runs={"tag_concurrency_limits": [{"key": "foo", "limit": 2, "value": UNIQUE}, second]})
    runs = Runs(engine)
    for run_id, value in (("1", "bar"), ("2", "baz"), ("3", "bar"), ("4", "baz"), ("5", "baz")):
        runs.come(run_id, tags={"foo": value})
    assert runs.started == ["1", "2", "4"]


def test_unrelated_tags_do_not_disturb(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 2, "tag_concurrency_limits": [{"key": "test", "limit": 1}]})
    runs = Runs(engine)
    runs.come("1", tags={"other-tag": "value", "test": "value"})
    runs.come("2", tags={"other-tag": "value", "test": "value"})
    runs.come("3", tags={"other-tag": "value"})
    assert runs.started == ["1", "3"]


def test_key_limit_with_priority(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 2, "tag_concurrency_limits": [{"key": "test", "limit": 1}]})
    runs = Runs(engine)
    runs.come("before", tags={"test": "value"})
    runs.come("low", tags={"test": "value"}, priority=-100)
    runs.come("high", tags={"test": "value"})
    assert runs.started == ["before"]
    runs.end("before")
    assert runs.started == ["high"]


# -- the gate: a run whose root pools are all full is held back --------------------------------------------------------


def _gate(engine: Engine, *root_ops: set[str]) -> tuple[str, ...]:
    return rules.root_pools_full(root_ops, room(engine), engine.configuration(fresh=True)[1])


def test_gate_full_root(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    assert _gate(engine, {"foo"}) == ()
    with engine.hold("foo"):
        assert _gate(engine, {"foo"}) == ("foo",)
    assert _gate(engine, {"foo"}) == ()


def test_gate_partial_root(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1, "bar": 1}})
    with engine.hold("foo"):
        assert _gate(engine, {"foo"}, {"bar"}) == ()
        with engine.hold("bar"):
            assert _gate(engine, {"foo"}, {"bar"}) == ("bar", "foo")


def test_gate_one_unpooled_root(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    with engine.hold("foo"):
        assert _gate(engine, {"foo"}, set()) == ()


def _three_runs_at_the_gate(engine: Engine) -> int:
    """How many of three runs, each with one root op in pool foo, pass the gate; those that do ask for their slot."""
    passed = 0
    for _ in range(3):
        if not _gate(engine, {"foo"}):
            passed += 1
            engine.request(engine.claim("foo")).step()
    return passed


def test_gate_buffer_1_starts_2_of_3(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}, "op_granularity_run_buffer": 1})
    assert _three_runs_at_the_gate(engine) == 2


def test_gate_without_buffer_starts_1_of_3(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    assert _three_runs_at_the_gate(engine) == 1


def test_gate_raising_the_limit_starts_one_more(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    assert _three_runs_at_the_gate(engine) == 1
    configure(pools={"limits": {"foo": 2}})
    assert _three_runs_at_the_gate(engine) == 1


def test_gate_a_held_slot_keeps_the_next_run_waiting_until_freed(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    lease = granted(engine.request(engine.claim("foo")).step())
    assert _gate(engine, {"foo"}) == ("foo",)
    lease.release()
    assert _gate(engine, {"foo"}) == ()


def test_gate_unconfigured_pool_passes(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    with engine.hold("bar"):
        assert _gate(engine, {"bar"}) == ()


def test_several_blocks_at_once(engine: Engine, configure: Configure) -> None:
    """Dagster tries one block after the other; here the reasons name all, and all must go."""
    tag_limits = [{"key": "team", "limit": 1}]
    pools = {"limits": {"foo": {"limit": 1, "granularity": "run"}}}
    configure(pools=pools, runs={"max_concurrent_runs": 2, "tag_concurrency_limits": tag_limits})
    runs = Runs(engine)
    runs.come("total")
    runs.come("all", "foo", tags={"team": "x"})
    runs.come("late", "foo", tags={"team": "x"})
    assert runs.started == ["total", "all"]
    assert barred_by(engine, runs.requests["late"]) == {"runs", "pool:foo", "run_tag:team"}
    runs.end("total")
    assert runs.started == ["all"]
    assert barred_by(engine, runs.requests["late"]) == {"pool:foo", "run_tag:team"}
    runs.end("all")
    assert runs.started == ["late"]


# -- granularity -------------------------------------------------------------------------------------------------------


def test_run_granularity_a_non_root_pool_blocks(engine: Engine, configure: Configure) -> None:
    """Whatever op names the pool, first or last: the run takes it with its claim."""
    configure(pools={"granularity": "run", "limits": {"foo": 1}})
    runs = Runs(engine)
    runs.come("1", "foo")
    runs.come("2", "foo")
    runs.come("3")
    assert runs.started == ["1", "3"]
    runs.end("1")
    assert runs.started == ["3", "2"]


def test_run_granularity_two_ops_of_one_pool_count_once(engine: Engine, configure: Configure) -> None:
    configure(pools={"granularity": "run", "limits": {"foo": 1}})
    runs = Runs(engine)
    runs.come("1", "foo")
    assert runs.started == ["1"]
    ops = [engine.request(engine.claim("foo", run_id="1", op_id=op_id, in_run=True)) for op_id in ("a", "b")]
    for op in ops:
        assert granted(op.step()).slots == ()
    assert held(engine, "pool:foo") == 1


def test_run_granularity_a_held_slot_keeps_the_next_run_waiting_until_freed(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"granularity": "run", "limits": {"foo": 1}})
    runs = Runs(engine)
    lease = granted(engine.request(engine.run_claim("before", "foo")).step())
    runs.come("1", "foo")
    assert runs.started == []
    lease.release()
    assert runs.started == ["1"]


def test_gate_disabled_all_start(engine: Engine, configure: Configure) -> None:
    """The gate is the host's to ask. Where none does, all runs start and their ops wait."""
    configure(pools={"limits": {"foo": 1}})
    runs = Runs(engine)
    for run_id in ("1", "2", "3"):
        runs.come(run_id)
    assert runs.started == ["1", "2", "3"]
    ops = [engine.request(engine.claim("foo", run_id=run_id, op_id="o", in_run=True)) for run_id in runs.started]
    assert [waits(op) for op in ops] == [False, True, True]


def test_op_is_the_default(new_engine: NewEngine, engine: Engine, configure: Configure) -> None:
    """A run takes no pool that only its ops name."""
    configure(pools={"limits": {"foo": 1}})
    runs = Runs(engine)
    runs.come("1")
    with engine.hold("foo"):
        runs.come("2")
    assert runs.started == ["1", "2"]
    assert held(engine, "pool:foo") == 0
    assert engine.configuration()[1].pool_granularity("foo") == "op"


def test_unconfigured_pool_passes(engine: Engine, configure: Configure) -> None:
    configure(pools={"granularity": "run", "limits": {"foo": 1}})
    runs = Runs(engine)
    for run_id in ("1", "2", "3"):
        runs.come(run_id, "bar")
    assert runs.started == ["1", "2", "3"]
    assert held(engine, "pool:bar") == 3
