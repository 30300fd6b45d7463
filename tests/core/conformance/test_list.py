"""The list of Dagster's own tests, case by case, and our test of each: none is missing, none unlisted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CASES = {
    "run_queue": {
        "queued only": "queued_only",
        "max_runs 0 of 4": "max_runs_0",
        "max_runs 1 of 4": "max_runs_1",
        "max_runs 5 of 4": "max_runs_5",
        "a total of 0": "max_concurrent_runs_0",
        "-1 disables": "max_runs_minus_1",
        "priority 3, 0, -1": "priority_3_0_minus_1",
        "malformed priority = 0": "malformed_priority_is_0",
        "tag limit by value": "tag_limit_by_value",
        "tag limit by key only": "tag_limit_by_key_only",
        "tag limit by key only, applyLimitPerUniqueValue: false": "tag_limit_by_key_only_as_dagster_also_writes_it",
        "several rules": "several_rules",
        "overlapping key + key=value": "overlapping_key_and_key_with_value",
        "per unique value": "per_unique_value",
        "per unique value with a tighter second rule": "per_unique_value_with_a_tighter_second_rule",
        "per unique value with a looser second rule": "per_unique_value_with_a_looser_second_rule",
        "unrelated tags do not disturb": "unrelated_tags_do_not_disturb",
        "key limit with priority": "key_limit_with_priority",
        "gate: full root": "gate_full_root",
        "gate: partial root": "gate_partial_root",
        "gate: one unpooled root": "gate_one_unpooled_root",
        "gate: buffer 1 → 2 of 3": "gate_buffer_1_starts_2_of_3",
        "gate: no buffer → 1 of 3": "gate_without_buffer_starts_1_of_3",
        "gate: raise the limit → one more": "gate_raising_the_limit_starts_one_more",
        "gate: a held slot keeps the next run waiting until freed": (
            "gate_a_held_slot_keeps_the_next_run_waiting_until_freed"
        ),
        "gate: unconfigured pool passes": "gate_unconfigured_pool_passes",
        "gate disabled → all start": "gate_disabled_all_start",
        "several blocks at once": "several_blocks_at_once",
        "run granularity: a non-root pool blocks": "run_granularity_a_non_root_pool_blocks",
        "run granularity: two ops of one pool count once": "run_granularity_two_ops_of_one_pool_count_once",
        "run granularity: a held slot keeps the next run waiting until freed": (
            "run_granularity_a_held_slot_keeps_the_next_run_waiting_until_freed"
        ),
        "op is the default": "op_is_the_default",
        "unconfigured pool passes": "unconfigured_pool_passes",
    },
    "slots": {
        "claim": "claim",
        "block": "block",
        "free for a run": "free_for_a_run",
        "two pools": "two_pools",
        "priority then oldest": "priority_then_oldest",
        "newcomer blocked": "newcomer_blocked",
        "newcomer admitted when there is room": "newcomer_admitted_when_there_is_room",
        "grow grants": "grow_grants",
        "a granted-unacknowledged waiter that leaves hands on": "a_granted_unacknowledged_waiter_that_leaves_hands_on",
        "-1 and 10 001 refused": "minus_1_and_10001_refused",
        "10 000 taken": "10000_taken",
        "5→1 with 3 held": "5_to_1_with_3_held",
        "1→4": "1_to_4",
        "run ids listed": "run_ids_listed",
        "100 ops on 5 slots all drain and never exceed 5": "100_ops_on_5_slots_all_drain_and_never_exceed_5",
        "limit 0 listed and blocks": "limit_0_listed_and_blocks",
        "default None/0/1": "default_none_0_1",
        "default 1→2→none": "default_1_2_none",
        "no pools block": "a_configuration_without_pools_is_as_one_with_none",
    },
    "context": {
        "exit frees": "exit_frees",
        "unlimited passes": "unlimited_passes",
        "an error inside frees": "an_error_inside_frees",
        "op priority": "op_priority",
        "run priority": "run_priority",
        "their sum": "the_sum_of_run_and_op_priority",
        "run priority of the run's own claim": "run_priority_of_a_run_claim",
    },
    "executors": {
        "limit 1 → never 2 active": "limit_1_never_2_active",
        "failure releases": "failure_releases",
        "limit 3 → >1 and ≤3": "limit_3_more_than_1_and_at_most_3",
        "two runs, limit 2, never >2 and reaches 2": "two_runs_limit_2_never_more_and_reached",
        "another op runs between the retries of the first": "another_op_runs_between_the_retries_of_the_first",
    },
    "config": {
        "legacy run_queue / run_coordinator merged with concurrency": "legacy_block_merged_with_concurrency",
        "legacy run_queue / run_coordinator alone": "legacy_block_alone",
        "each contradiction an error": "each_contradiction_an_error",
        "default_op_concurrency_limit beside default_limit": "default_op_concurrency_limit_contradicts_default_limit",
        "legacy default_op_concurrency_limit": "legacy_default_op_concurrency_limit",
        "legacy block_op_concurrency_limited_runs": "legacy_block_op_concurrency_limited_runs",
        "CLI: get": "cli_get",
        "CLI: list": "cli_list",
        "CLI: set": "cli_set",
        "CLI: unknown pool": "cli_unknown_pool",
        "free after the run's end": "free_after_the_runs_end",
        "free by op": "free_by_op",
        "free by run": "free_by_run",
    },
}
NO_STORE = frozenset({"legacy", "each_contradiction", "default_op_concurrency_limit"})
"""How the names begin of those that are about a file alone."""


def _tests(module: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((Path(__file__).parent / f"test_{module}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name.removeprefix("test_"): node for node in functions if node.name.startswith("test_")}


def test_every_module_is_listed() -> None:
    modules = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert modules == CASES.keys() | {"list"}


@pytest.mark.parametrize("module", CASES)
def test_every_case_has_its_test_and_every_test_its_case(module: str) -> None:
    assert sorted(CASES[module].values()) == sorted(_tests(module))


@pytest.mark.parametrize("module", CASES)
def test_every_case_runs_on_every_store(module: str) -> None:
    """But for the command line's, which reaches a store by its URL: those leave out the one in memory."""
    for name, node in _tests(module).items():
        if name.startswith(tuple(NO_STORE)):
            continue
        fixtures = {argument.arg for argument in node.args.args}
        narrowed = [ast.unparse(each) for each in node.decorator_list if "store_kind" in ast.unparse(each)]
        decorators = [ast.unparse(each) for each in node.decorator_list]
        assert not narrowed, name
        assert ("sql_only" in decorators) == name.startswith("cli_"), name
        assert fixtures & {"engine", "store", "command"}, name
