"""Which limits a claim must pass, and what capacity each has: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.claim import Claim, ClaimKind
from penstock.config import Concurrency, PoolLimit
from penstock.rules import Demand, Source, configured_keys, demands, limit_kind, resolve_limit

NAMES = st.sampled_from(["a", "b", "a/b", "a=b", "a:b", "a%b", "*"])
LIMITS = st.integers(0, 10_000)
RULE_VALUES = st.none() | NAMES | st.just({"applyLimitPerUniqueValue": True})
RULES = st.lists(
    st.fixed_dictionaries({"key": NAMES, "limit": LIMITS, "value": RULE_VALUES}),
    max_size=5,
    unique_by=lambda rule: (rule["key"], str(rule["value"])),
)
BLOCKS = st.fixed_dictionaries(
    {
        "pools": st.fixed_dictionaries(
            {
                "default_limit": st.none() | LIMITS,
                "granularity": st.sampled_from(["op", "run"]),
                "limits": st.dictionaries(NAMES, LIMITS, max_size=3),
            }
        ),
        "runs": st.fixed_dictionaries(
            {"max_concurrent_runs": st.none() | st.integers(-1, 10_000), "tag_concurrency_limits": RULES}
        ),
        "ops": st.fixed_dictionaries({"max_concurrent": st.none() | LIMITS, "tag_concurrency_limits": RULES}),
    }
)
CONFIGURATIONS = BLOCKS.map(Concurrency.model_validate)
CLAIMS = st.builds(
    Claim,
    kind=st.sampled_from(ClaimKind),
    host=st.just("h"),
    deployment=st.just("d"),
    run_id=NAMES,
    pools=st.dictionaries(NAMES, st.integers(1, 9), max_size=3),
    tags=st.dictionaries(NAMES, NAMES, max_size=3),
    in_run=st.booleans(),
)


def configuration(**block: Any) -> Concurrency:
    return Concurrency.model_validate(block)


def op(pools: Mapping[str, int] | None = None, tags: Mapping[str, str] | None = None, *, in_run: bool = False) -> Claim:
    return Claim(
        kind=ClaimKind.OP, host="h", deployment="d", run_id="r", pools=pools or {}, tags=tags or {}, in_run=in_run
    )


def run(tags: Mapping[str, str] | None = None, pools: Mapping[str, int] | None = None) -> Claim:
    return Claim(kind=ClaimKind.RUN, host="h", deployment="d", run_id="r", tags=tags or {}, pools=pools or {})


def test_an_explicit_limit_beats_the_default_and_without_both_a_pool_is_unlimited() -> None:
    concurrency = configuration(pools={"default_limit": 3, "limits": {"own": 0}})
    assert demands(op({"own": 1, "other": 2}), concurrency) == (
        Demand("pool:other", 2, 3, Source.DEFAULT),
        Demand("pool:own", 1, 0, Source.EXPLICIT),
    )
    assert demands(op({"other": 2}), configuration()) == (Demand("pool:other", 2, None, Source.NONE),)


def test_a_default_of_zero_closes_every_pool_without_a_limit() -> None:
    (demand,) = demands(op({"p": 1}), configuration(pools={"default_limit": 0}))
    assert (demand.capacity, demand.impossible) == (0, False)


@pytest.mark.parametrize(
    ("slots", "capacity", "impossible"), [(2, 1, True), (2, 2, False), (2, 0, False), (2, None, False)]
)
def test_more_slots_than_there_will_ever_be(slots: int, capacity: int | None, impossible: bool) -> None:
    assert Demand("pool:p", slots, capacity, Source.RULE).impossible is impossible


@pytest.mark.parametrize(("total", "capacity"), [(None, None), (-1, None), (0, 0), (5, 5)])
def test_the_run_total(total: int | None, capacity: int | None) -> None:
    (demand,) = demands(run(), configuration(runs={"max_concurrent_runs": total}))
    assert (demand.key, demand.capacity) == ("runs", capacity)


def test_every_matching_run_tag_rule_must_have_room() -> None:
    rules = [
        {"key": "team", "limit": 5},
        {"key": "team", "value": "ml", "limit": 2},
        {"key": "team", "value": {"applyLimitPerUniqueValue": True}, "limit": 3},
        {"key": "other", "limit": 1},
    ]
    concurrency = configuration(runs={"tag_concurrency_limits": rules})

    def asked(tags: Mapping[str, str]) -> dict[str, int | None]:
        return {demand.key: demand.capacity for demand in demands(run(tags), concurrency)}

    assert asked({"team": "ml"}) == {"runs": None, "run_tag:team": 5, "run_tag:team=ml": 2, "run_tag:team=*:ml": 3}
    assert asked({"team": "bi"}) == {"runs": None, "run_tag:team": 5, "run_tag:team=*:bi": 3}
    assert asked({"unrelated": "x"}) == {"runs": None}


def test_an_op_passes_no_run_limits_and_its_runs_own_only_within_one() -> None:
    concurrency = configuration(
        runs={"max_concurrent_runs": 1, "tag_concurrency_limits": [{"key": "database", "limit": 1}]},
        ops={"max_concurrent": 4, "tag_concurrency_limits": [{"key": "database", "value": "w", "limit": 1}]},
    )
    assert demands(op(tags={"database": "w"}), concurrency) == ()
    assert demands(op(tags={"database": "w"}, in_run=True), concurrency) == (
        Demand("run_op_tag:h/d/r:database=w", 1, 1, Source.RULE),
        Demand("run_ops:h/d/r", 1, 4, Source.RULE),
    )


def test_pools_of_run_granularity_are_the_runs_business() -> None:
    concurrency = configuration(pools={"granularity": "run", "limits": {"o": {"limit": 1, "granularity": "op"}}})
    assert [demand.key for demand in demands(op({"o": 1, "r": 1}), concurrency)] == ["pool:o"]
    assert [demand.key for demand in demands(run(pools={"o": 1, "r": 2}), concurrency)] == ["pool:o", "pool:r", "runs"]


def test_limits_that_exist_before_any_claim() -> None:
    rules = [{"key": "a", "limit": 1}, {"key": "a", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}]
    concurrency = configuration(
        pools={"default_limit": 1, "limits": {"p": 1}}, runs={"max_concurrent_runs": 1, "tag_concurrency_limits": rules}
    )
    assert configured_keys(concurrency) == ["pool:p", "run_tag:a", "runs"]
    assert configured_keys(configuration(runs={"max_concurrent_runs": -1})) == []


@given(CLAIMS, CONFIGURATIONS)
def test_demands_are_in_order_each_key_once_and_resolve_to_what_they_say(
    claim: Claim, concurrency: Concurrency
) -> None:
    found = demands(claim, concurrency)
    keys = [demand.key for demand in found]
    assert keys == sorted(set(keys))
    for demand in found:
        assert resolve_limit(demand.key, concurrency) == (demand.capacity, demand.source)
        assert (demand.capacity is None) == (demand.source is Source.NONE)
        assert limit_kind(demand.key)
    assert ("runs" in keys) == (claim.kind is ClaimKind.RUN)


@given(CLAIMS, CONFIGURATIONS)
def test_as_many_tag_limits_as_rules_that_match(claim: Claim, concurrency: Concurrency) -> None:
    is_run = claim.kind is ClaimKind.RUN
    rules = (concurrency.runs if is_run else concurrency.ops).tag_concurrency_limits
    matching = [
        rule
        for rule in rules
        if rule.key in claim.tags and (rule.value in (None, claim.tags[rule.key]) or rule.per_unique_value)
    ]
    tag_keys = [demand.key for demand in demands(claim, concurrency) if "_tag:" in demand.key]
    counted = is_run or (claim.in_run and claim.kind is ClaimKind.OP)
    assert len(tag_keys) == (len(matching) if counted else 0)


@given(CONFIGURATIONS)
def test_a_configuration_survives_its_document(concurrency: Concurrency) -> None:
    assert Concurrency.from_document(concurrency.document()) == concurrency
    for key in configured_keys(concurrency):
        assert resolve_limit(key, concurrency)[0] is not None


@given(CONFIGURATIONS, NAMES, LIMITS)
def test_setting_and_deleting_one_pool_touches_no_other(concurrency: Concurrency, name: str, limit: int) -> None:
    others = {key: value for key, value in concurrency.pools.limits.items() if key != name}
    changed = concurrency.with_pool(name, PoolLimit(limit=limit))
    assert changed.pools.limits == {**others, name: PoolLimit(limit=limit)}
    assert changed.with_pool(name, None).pools.limits == others
    assert changed.runs == concurrency.runs
