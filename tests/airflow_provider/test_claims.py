"""From the facts of a task instance to its claims: pure, so tested without an Airflow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.claim import PRIORITY_MAX, Claim, ClaimKind
from penstock.config import Concurrency
from penstock.errors import ClaimError
from penstock.rules import demands, late_pools
from penstock_airflow import claims
from penstock_airflow.claims import TaskFacts
from penstock_airflow.limits import Asks, Limits, RunLimits

FACTS = TaskFacts(
    dag_id="etl",
    run_id="manual__2026-01-01T00:00:00+00:00",
    task_id="load",
    try_number=2,
    pool="database",
    pool_slots=3,
    priority_weight=5,
    dag_tags=("nightly", "team:data", "url:http://x"),
    task_group="group",
    owner="ann",
    operator="BashOperator",
    queue="default",
    run_type="manual",
    triggering_user="bob",
    conf={"team": "analytics", "rows": 7},
    params={"team": "other", "region": "eu"},
    url="http://host/dags/etl/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00/tasks/load?try_number=2",
)


def configured(*limited: str, run_granularity: Collection[str] = (), **pools: Any) -> Concurrency:
    """A configuration with these pools at 100 slots each, some of them of run granularity."""
    limits: dict[str, Any] = dict.fromkeys(limited, 100)
    limits |= {name: {"limit": 100, "granularity": "run"} for name in run_granularity}
    return Concurrency.from_document({"pools": {"limits": limits, **pools}})


def op_claim(facts: TaskFacts = FACTS, limits: Limits = claims.NO_LIMITS, *limited: str, **more: Any) -> Claim:
    return claims.op_claim(facts, limits, deployment="prod", **{"concurrency": configured(*limited), **more})


def run_claim(facts: TaskFacts = FACTS, limits: RunLimits = claims.NO_RUN_LIMITS, **more: Any) -> Claim:
    return claims.run_claim(facts, limits, deployment="prod", **{"concurrency": configured(), **more})


# -- ops -------------------------------------------------------------------------------------------------------------


def test_the_op_claim_names_the_attempt() -> None:
    claim = op_claim(FACTS, claims.NO_LIMITS, "database")
    assert (claim.kind, claim.host, claim.deployment) == (ClaimKind.OP, "airflow", "prod")
    assert (claim.run_id, claim.op_id, claim.attempt) == ("etl/manual__2026-01-01T00:00:00+00:00", "load", 2)
    assert claim.in_run
    assert dict(claim.pools) == {"database": 3}
    assert claim.priority == 4
    assert claim.url == FACTS.url


def test_tasks_of_two_dags_are_never_one_step() -> None:
    """With `pool_per_op` they would share a pool: a DAG's id may have a dot, and that of a group's task has one."""
    grouped, dotted = replace(FACTS, dag_id="a", task_id="b.c"), replace(FACTS, dag_id="a.b", task_id="c")
    assert (op_claim(grouped).step, op_claim(dotted).step) == ("a.b.c", "a.b/c")


def test_a_mapped_task_is_known_by_its_index_and_to_people_by_what_the_dag_calls_it() -> None:
    mapped = op_claim(replace(FACTS, map_index=3))
    assert (mapped.op_id, mapped.step) == ("load[3]", "etl.load")
    assert mapped.label == "airflow/prod etl/manual__2026-01-01T00:00:00+00:00 load[3]"
    assert op_claim(replace(FACTS, map_index=3, map_name="eu")).label.endswith(" load[eu]")
    assert op_claim().label == "airflow/prod etl/manual__2026-01-01T00:00:00+00:00 load"


def test_the_weight_of_a_task_that_says_nothing_is_no_priority() -> None:
    assert op_claim(replace(FACTS, priority_weight=1)).priority == 0


def test_a_priority_of_the_author_comes_before_the_weight_and_the_runs_is_added() -> None:
    assert op_claim(FACTS, Limits(priority=-2)).priority == -2
    assert op_claim(FACTS, Limits(priority=0)).priority == 0
    assert op_claim(FACTS, Limits(priority=2), run_priority=3).priority == 5
    assert op_claim(FACTS, run_priority=3).priority == 7


def test_op_tags() -> None:
    assert dict(op_claim().tags) == {
        "nightly": "",
        "team": "data",
        "url": "http://x",
        "airflow/dag_id": "etl",
        "airflow/task_id": "load",
        "airflow/task_group": "group",
        "airflow/owner": "ann",
        "airflow/operator": "BashOperator",
        "airflow/queue": "default",
    }


def test_of_several_tags_with_one_key_the_first_in_order_counts() -> None:
    facts = replace(FACTS, dag_tags=("team:ml", "nightly", "team:analytics"))
    for claim in (op_claim(facts), run_claim(facts)):
        assert (claim.tags["team"], claim.tags["nightly"]) == ("analytics", "")
    assert claims.tags_of_dag(facts.dag_tags)[1] == ("team:ml",)
    assert claims.tags_of_dag(["team:ml", "nightly"])[1] == ()


def test_tags_of_the_author_come_before_the_dags_but_are_never_taken_for_airflows_own() -> None:
    tags = op_claim(FACTS, Limits(tags={"team": "ml", "table": "t1", "airflow/queue": "mine"})).tags
    assert (tags["team"], tags["table"], tags["airflow/queue"]) == ("ml", "t1", "default")


@pytest.mark.parametrize(
    ("pool", "limited", "globs", "counts"),
    [
        ("database", ["database"], (), True),
        ("database", ["other"], (), False),
        ("database", [], ("data*",), True),
        ("database", [], ("*",), True),
        ("database", [], ("Data*",), False),
        ("default_pool", [], ("*",), False),
        ("default_pool", [], ("**",), False),
        ("default_pool", [], ("default_*",), True),
        ("default_pool", [], ("*", "default_pool"), True),
        ("default_pool", ["default_pool"], (), True),
    ],
)
def test_which_of_airflows_pools_count(pool: str, limited: list[str], globs: tuple[str, ...], counts: bool) -> None:
    claim = op_claim(replace(FACTS, pool=pool), claims.NO_LIMITS, *limited, globs=globs)
    assert dict(claim.pools) == ({pool: 3} if counts else {})


def test_pools_of_the_author_always_count_beside_airflows_own_and_before_it() -> None:
    limits = Limits(pools={"api": 2, "warehouse": 1})
    assert dict(op_claim(FACTS, limits).pools) == {"api": 2, "warehouse": 1}
    assert dict(op_claim(FACTS, limits, "database").pools) == {"database": 3, "api": 2, "warehouse": 1}
    assert dict(op_claim(FACTS, Limits(pools={"database": 1}), "database").pools) == {"database": 1}


def test_a_pool_with_a_name_that_penstock_cannot_have_is_an_error_only_when_it_counts() -> None:
    spaced = replace(FACTS, pool="my pool")
    assert not op_claim(spaced).pools
    with pytest.raises(ClaimError, match="whitespace"):
        op_claim(spaced, globs=("*",))


# -- runs ------------------------------------------------------------------------------------------------------------


def test_the_run_claim_is_the_same_from_every_task() -> None:
    first = run_claim()
    other = run_claim(replace(FACTS, task_id="extract", map_index=1, try_number=1, pool="x", priority_weight=9))
    assert first.holder == other.holder
    assert (first.tags, first.pools, first.priority) == (other.tags, other.pools, other.priority)
    assert first.kind is ClaimKind.RUN
    assert first.url == "http://host/dags/etl/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"


def test_run_tags() -> None:
    claim = run_claim(run_tag_keys=["team", "region", "rows", "absent"])
    assert dict(claim.tags) == {
        "nightly": "",
        "team": "analytics",  # the run's conf, before its params and the DAG's own tag
        "region": "eu",
        "rows": "7",
        "url": "http://x",
        "airflow/dag_id": "etl",
        "airflow/run_type": "manual",
        "airflow/triggering_user": "bob",
    }


def test_a_run_says_its_pools_tags_priority_and_limits_within() -> None:
    within = {"max_concurrent": 2}
    limits = RunLimits(pools={"rooms": 2}, tags={"team": "ml", "airflow/dag_id": "x"}, priority=3, within=within)
    claim = run_claim(FACTS, limits)
    assert (dict(claim.pools), claim.priority, claim.within) == ({"rooms": 2}, 3, within)
    assert (claim.tags["team"], claim.tags["airflow/dag_id"]) == ("ml", "etl")


def test_a_backfill_is_known_by_its_dag() -> None:
    """Airflow tells a task no id of it, and lets only one backfill of a DAG be active."""
    assert run_claim(replace(FACTS, run_type="backfill")).tags["airflow/backfill_id"] == "etl"
    assert "airflow/backfill_id" not in run_claim().tags


def test_the_run_takes_the_most_that_a_task_asks_of_each_pool_of_run_granularity() -> None:
    asks = (
        Asks(pool="rooms", pool_slots=2),
        Asks(pool="rooms", pool_slots=9, pools={"rooms": 4}),  # said by the author: before Airflow's own
        Asks(pool="desks", pool_slots=5, pools={"api": 2, "desks": 1}),
        Asks(pool="unlisted", pool_slots=5),
    )
    concurrency = configured("api", run_granularity=["rooms", "desks"])
    claim = run_claim(replace(FACTS, asks=asks), concurrency=concurrency)
    assert dict(claim.pools) == {"rooms": 4, "desks": 1}
    declared = run_claim(replace(FACTS, asks=asks), RunLimits(pools={"rooms": 6, "api": 1}), concurrency=concurrency)
    assert dict(declared.pools) == {"rooms": 6, "desks": 1, "api": 1}


def test_run_granularity_for_all_reaches_only_the_native_pools_that_count() -> None:
    asks = (Asks(pool="default_pool", pool_slots=1), Asks(pool="api", pool_slots=2, pools={"mine": 1}))
    concurrency = configured(granularity="run", default_limit=1)
    assert dict(run_claim(replace(FACTS, asks=asks), concurrency=concurrency).pools) == {"mine": 1}
    both = run_claim(replace(FACTS, asks=asks), concurrency=concurrency, globs=("*",))
    assert dict(both.pools) == {"mine": 1, "api": 2}


def test_the_pools_with_which_a_run_begins() -> None:
    """None as soon as one of its first tasks names no pool, or is skipped where it is blocked."""
    concurrency = configured("database")
    pooled = (
        Asks(pool="database", pool_slots=1, pools={"api": 1}, is_root=True),
        Asks(pool="database", pool_slots=1, is_root=True),
        Asks(pool="database", pool_slots=2, is_root=True),
        Asks(pool="default_pool", pool_slots=1, pools={"later": 1}),
    )
    free = Asks(pool="default_pool", pool_slots=1, is_root=True)
    skips = Asks(pool="database", pool_slots=1, is_root=True, waits=False)
    found = [
        run_claim(replace(FACTS, asks=asks), concurrency=concurrency).roots
        for asks in (pooled, (*pooled, free), (*pooled, skips), ())
    ]
    assert found == [(("database",), ("database", "api")), (), (), ()]


# -- what holds for all ----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "default_pool"])
POOLS = st.dictionaries(NAMES, st.integers(1, 9), max_size=3)
TAGS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5), st.just("x"), max_size=3
)
ASKS = st.lists(
    st.builds(Asks, pool=NAMES, pool_slots=st.integers(1, 9), pools=POOLS, is_root=st.booleans()), max_size=5
).map(tuple)
CONFIGURATIONS = st.builds(
    configured,
    st.just("a"),
    run_granularity=st.lists(st.sampled_from(["b", "c"]), unique=True),
    granularity=st.sampled_from(["op", "run"]),
)
GLOBS = st.lists(st.sampled_from(["*", "b", "default_*"]), max_size=2)


@given(POOLS, TAGS, st.integers() | st.none(), st.integers(), st.integers(), CONFIGURATIONS, GLOBS)
def test_every_op_claim_keeps_what_the_author_said_and_travels(
    pools: dict[str, int],
    tags: dict[str, str],
    priority: int | None,
    weight: int,
    run_priority: int,
    concurrency: Concurrency,
    globs: list[str],
) -> None:
    limits = Limits(pools=pools, tags=tags, priority=priority)
    claim = op_claim(
        replace(FACTS, priority_weight=weight), limits, concurrency=concurrency, globs=globs, run_priority=run_priority
    )
    assert pools.items() <= claim.pools.items() <= (pools | {"database": 3}).items()
    assert tags.keys() <= claim.tags.keys()
    assert abs(claim.priority) <= PRIORITY_MAX
    assert Claim.from_dict(claim.as_dict()) == claim


@given(ASKS, POOLS, CONFIGURATIONS, GLOBS)
def test_no_task_asks_late_or_more_of_a_pool_than_its_run_took(
    asks: tuple[Asks, ...], declared: dict[str, int], concurrency: Concurrency, globs: list[str]
) -> None:
    facts = replace(FACTS, asks=asks)
    run = run_claim(facts, RunLimits(pools=declared), concurrency=concurrency, globs=globs)
    assert declared.keys() <= run.pools.keys()
    for ask in asks:
        own = replace(facts, pool=ask.pool, pool_slots=ask.pool_slots)
        op = op_claim(own, Limits(pools=ask.pools), concurrency=concurrency, globs=globs)
        late = late_pools(op, concurrency)
        assert all(run.pools[name] >= slots for name, slots in late.items())
        assert {demand.key for demand in demands(op, concurrency)} == {
            f"pool:{name}" for name in op.pools.keys() - late
        }
