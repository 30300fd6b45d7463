"""From the facts of a task instance to its claims: pure, so tested without an Airflow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from penstock.claim import ClaimKind
from penstock.errors import ClaimError
from penstock_airflow import claims
from penstock_airflow.claims import TaskFacts
from penstock_airflow.limits import Limits, RunLimits

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


def test_the_op_claim_names_the_attempt() -> None:
    claim = claims.op_claim(FACTS, Limits(), deployment="prod", limited={"database"})
    assert (claim.kind, claim.host, claim.deployment) == (ClaimKind.OP, "airflow", "prod")
    assert (claim.run_id, claim.op_id, claim.attempt) == ("etl/manual__2026-01-01T00:00:00+00:00", "load", 2)
    assert claim.in_run
    assert dict(claim.pools) == {"database": 3}
    assert claim.priority == 4
    assert claim.url == FACTS.url


def test_a_mapped_task_is_known_by_its_index() -> None:
    claim = claims.op_claim(replace(FACTS, map_index=3), Limits(), deployment="prod", limited=())
    assert claim.op_id == "load[3]"


def test_the_weight_of_a_task_that_says_nothing_is_no_priority() -> None:
    assert claims.op_claim(replace(FACTS, priority_weight=1), Limits(), deployment="prod", limited=()).priority == 0


def test_op_tags() -> None:
    assert dict(claims.op_claim(FACTS, Limits(), deployment="prod", limited=()).tags) == {
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


@pytest.mark.parametrize(
    ("pool", "limited", "globs", "counts"),
    [
        ("database", {"database"}, (), True),
        ("database", {"other"}, (), False),
        ("database", (), ("data*",), True),
        ("database", (), ("*",), True),
        ("database", (), ("Data*",), False),
        ("default_pool", (), ("*",), False),
        ("default_pool", (), ("**",), False),
        ("default_pool", (), ("default_*",), True),
        ("default_pool", (), ("*", "default_pool"), True),
        ("default_pool", {"default_pool"}, (), True),
    ],
)
def test_which_of_airflows_pools_count(pool: str, limited: set[str], globs: tuple[str, ...], counts: bool) -> None:
    claim = claims.op_claim(replace(FACTS, pool=pool), Limits(), deployment="prod", limited=limited, globs=globs)
    assert dict(claim.pools) == ({pool: 3} if counts else {})


def test_a_pool_with_a_name_that_penstock_cannot_have_is_an_error_only_when_it_counts() -> None:
    spaced = replace(FACTS, pool="my pool")
    assert not claims.op_claim(spaced, Limits(), deployment="prod", limited=()).pools
    with pytest.raises(ClaimError, match="whitespace"):
        claims.op_claim(spaced, Limits(), deployment="prod", limited=(), globs=("*",))


def test_the_run_claim_is_the_same_from_every_task() -> None:
    first = claims.run_claim(FACTS, RunLimits(), deployment="prod")
    other = claims.run_claim(
        replace(FACTS, task_id="extract", map_index=1, try_number=1, pool="x", priority_weight=9),
        RunLimits(),
        deployment="prod",
    )
    assert first.holder == other.holder
    assert (first.tags, first.pools, first.priority) == (other.tags, other.pools, other.priority)
    assert first.kind is ClaimKind.RUN
    assert first.url == "http://host/dags/etl/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"


def test_run_tags() -> None:
    claim = claims.run_claim(FACTS, RunLimits(), deployment="prod", run_tag_keys=["team", "region", "rows", "absent"])
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


def test_a_claim_survives_its_way_through_a_trigger() -> None:
    claim = claims.op_claim(FACTS, Limits(), deployment="prod", limited={"database"})
    assert type(claim).from_dict(claim.as_dict()) == claim
