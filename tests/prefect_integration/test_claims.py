"""From facts of Prefect's runs to claims: pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from penstock.claim import ClaimKind
from penstock.errors import ClaimError
from penstock_prefect.claims import (
    NOWHERE,
    FlowFacts,
    Limits,
    Standing,
    TaskFacts,
    asked_pools,
    block_claim,
    op_tags,
    run_claim,
    run_tags,
    subflow_claim,
    task_claim,
    uncovered,
)

FLOW = FlowFacts(
    flow_run_id="run-1",
    flow_name="nightly",
    flow_run_name="amber-fox",
    run_count=2,
    deployment_name="prod",
    work_pool_name="k8s",
    scheduled=True,
    tags=frozenset({"team:analytics", "urgent"}),
    url="http://ui/run-1",
)
TASK = TaskFacts(
    task_run_id="op-1",
    task_name="query",
    task_run_name="query-0",
    run_count=3,
    flow_run_id="run-1",
    flow_name="nightly",
    flow_run_name="amber-fox",
    tags=frozenset({"db:x:y"}),
)


@pytest.mark.parametrize(
    ("pools", "slots", "expected"),
    [
        ((), None, {}),
        (("database",), None, {"database": 1}),
        (("database",), 2, {"database": 2}),
        (("database", 2), None, {"database": 2}),
        (("database:2", "api"), None, {"database": 2, "api": 1}),
        (({"database": 2}, "api"), None, {"database": 2, "api": 1}),
    ],
)
def test_pools_as_users_write_them(pools: tuple[object, ...], slots: int | None, expected: dict[str, int]) -> None:
    assert asked_pools(pools, slots) == expected


@pytest.mark.parametrize(
    ("pools", "slots"),
    [(("a", "b"), 2), (("a:2",), 3), ((), 2), (("a", "b", 2), None), (({"a": 1},), 2), (("a", "a:2"), None), ((2,), 1)],
)
def test_pools_that_contradict_themselves_are_refused(pools: tuple[object, ...], slots: int | None) -> None:
    with pytest.raises(ClaimError):
        asked_pools(pools, slots)


def test_on_blocked_is_checked_where_it_is_written() -> None:
    with pytest.raises(ClaimError, match="'wait', 'skip', 'fail'"):
        Limits(on_blocked="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        {"on_blocked": "skip", "wait_timeout_seconds": 1},
        {"wait_timeout_seconds": -1},
        {"wait_timeout_seconds": True},
        {"priority": "high"},
        {"within": {"max_concurrent": -2}},
        {"within": {"max_at_once": 1}},
    ],
)
def test_words_that_can_never_be_right_are_refused_where_they_are_written(words: dict[str, Any]) -> None:
    with pytest.raises(ClaimError):
        Limits(**words)


def test_a_run_claim_belongs_to_the_flow_run_and_carries_its_tags() -> None:
    within = {"max_concurrent": 3}
    claim, standing = run_claim(FLOW, Limits(pools={"database": 2}, priority=5, within=within), "pf")
    assert (claim.name, claim.within) == ("nightly/amber-fox", within)
    assert Standing.from_dict(standing.as_dict()) == standing
    assert (claim.kind, claim.host, claim.deployment, claim.run_id) == (ClaimKind.RUN, "prefect", "pf", "run-1")
    assert (claim.attempt, claim.priority, claim.url) == (2, 5, "http://ui/run-1")
    assert claim.pools == {"database": 2}
    assert claim.tags == {
        "prefect/flow": "nightly",
        "prefect/deployment": "prod",
        "prefect/work_pool": "k8s",
        "prefect/schedule": "true",
        "team": "analytics",
        "urgent": "",
    }
    assert standing.run_id == "run-1"


def test_a_direct_run_has_no_tags_of_a_deployment() -> None:
    assert run_tags(FlowFacts(flow_run_id="r", flow_name="f"))[0] == {"prefect/flow": "f"}


def test_a_tag_key_has_one_value_and_implicit_tags_cannot_be_forged() -> None:
    facts = FlowFacts(flow_run_id="r", flow_name="f", tags=frozenset({"team:b", "team:a", "prefect/flow:other"}))
    tags, ignored = run_tags(facts)
    assert tags == {"prefect/flow": "f", "team": "a"}
    assert ignored == ("prefect/flow:other", "team:b")


def test_a_tasks_own_tags_come_before_those_around_it() -> None:
    tags = frozenset({"db:lake", "db:warehouse", "team:a", "team:b", "prefect/task:x"})
    parsed, ignored = op_tags(replace(TASK, tags=tags, own_tags=frozenset({"db:warehouse", "gone"})))
    assert parsed == {"prefect/task": "query", "db": "warehouse", "team": "a"}
    assert ignored == ("prefect/task:x", "team:b"), "db:lake is the flow's, and meant for tasks that say nothing"


def test_a_task_outside_runs_under_limits_is_counted_in_none() -> None:
    claim, _ = task_claim(TASK, Limits(pools={"database": 1}), "pf", NOWHERE)
    assert (claim.name, claim.step) == ("nightly/amber-fox query-0", "nightly.query")
    assert (claim.kind, claim.run_id, claim.op_id, claim.attempt) == (ClaimKind.OP, "run-1", "op-1", 3)
    assert not claim.in_run
    assert claim.tags == {"prefect/task": "query", "db": "x:y"}


def test_a_task_inside_a_run_belongs_to_its_root_and_adds_the_runs_priority() -> None:
    standing = Standing(run_id="root", priority=2)
    claim, _ = task_claim(TASK, Limits(priority=3), "pf", standing)
    assert (claim.run_id, claim.in_run, claim.priority) == ("root", True, 5)


def test_a_task_cannot_limit_the_tasks_of_its_run() -> None:
    with pytest.raises(ClaimError, match="say it of the flow"):
        task_claim(TASK, Limits(within={"max_concurrent": 1}), "pf", NOWHERE)


def test_pools_of_the_run_cover_its_tasks_up_to_what_it_holds() -> None:
    standing = Standing(run_id="root", run_pools={"database": 2})
    claim, _ = task_claim(TASK, Limits(pools={"database": 2, "api": 1}), "pf", standing)
    assert claim is not None
    assert claim.pools == {"api": 1}
    with pytest.raises(ClaimError, match=r"3 slots asked inside a run that holds 2"):
        task_claim(TASK, Limits(pools={"database": 3}), "pf", standing)


def test_a_pool_of_a_task_covers_blocks_in_it_but_no_task_below_it() -> None:
    _, within = task_claim(TASK, Limits(pools={"database": 1}), "pf", NOWHERE)
    assert block_claim(Limits(pools={"database": 1}), "pf", within, "somewhere")[0] is None
    child = TaskFacts(task_run_id="op-2", task_name="child")
    claim, _ = task_claim(child, Limits(pools={"database": 1}), "pf", within)
    assert claim is not None
    assert claim.pools == {"database": 1}


def test_a_block_is_nobody_elses_and_knows_the_op_around_it() -> None:
    limits = Limits(pools={"api": 1})
    in_flow, within = block_claim(limits, "pf", Standing(run_id="root"), "nightly/amber-fox")
    assert in_flow is not None
    assert (in_flow.in_run, in_flow.parent_id, in_flow.name) == (True, None, "nightly/amber-fox slots")
    assert in_flow.holder is None, "blocks in two processes must not be taken for one"
    in_block, _ = block_claim(Limits(pools={"other": 1}), "pf", within, "x")
    assert in_block is not None
    assert (in_block.in_run, in_block.parent_id) == (True, in_flow.claim_id)


def test_a_subflow_makes_no_run_claim_and_takes_only_what_the_run_lacks() -> None:
    _, around = run_claim(FLOW, Limits(pools={"database": 1}), "pf")
    inner = FlowFacts(flow_run_id="run-2", flow_name="inner")
    claim, below = subflow_claim(inner, Limits(pools={"database": 1}), "pf", around)
    assert claim is None
    assert below.run_id == "run-1"
    claim, below = subflow_claim(inner, Limits(pools={"api": 1}), "pf", around)
    assert claim is not None
    assert (claim.kind, claim.run_id, claim.op_id, claim.in_run) == (ClaimKind.OP, "run-1", "run-2", False)
    assert below.run_pools == {"database": 1, "api": 1}


def test_uncovered_leaves_what_nobody_holds() -> None:
    assert uncovered({"a": 1, "b": 2}, {"a": 1}, "run") == {"b": 2}
