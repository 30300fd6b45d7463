"""What a deployment declares for its runs."""

from __future__ import annotations

import pytest
from penstock.errors import ClaimError
from penstock_prefect.claims import Limits
from penstock_prefect.declared import Declared


def test_nothing_declared_is_no_more_than_the_limits_of_runs() -> None:
    for variables in ((), ({}, None), ({"penstock": None}, {"image": "x"})):
        assert Declared.of(*variables) == Limits()


def test_what_the_run_says_stands_over_what_its_deployment_says() -> None:
    deployment = {"image": "x", "penstock": {"pools": ["database:2", "api"], "priority": 5}}
    assert Declared.of(deployment, {"penstock": {"priority": 7, "wait_timeout_seconds": 60}}) == Limits(
        pools={"database": 2, "api": 1}, priority=7, wait_timeout_seconds=60
    )


def test_a_runs_own_limits_on_its_tasks() -> None:
    rule = {"key": "database", "limit": 1}
    declared = {"max_concurrent": 3, "tag_concurrency_limits": [rule]}
    assert Declared.of({"penstock": declared}).within == declared
    with pytest.raises(ClaimError, match="max_concurrent"):
        Declared.of({"penstock": {"max_concurrent": -2}})


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("database", "a mapping such as {pools: [database:2]} is expected"),
        ({"pool": "database"}, "pool: Extra inputs are not permitted"),
        ({"pools": "database"}, "pools: Input should be a valid list"),
        ({"on_blocked": "leave", "priority": "high"}, "priority: Input should be a valid integer"),
        ({"wait_timeout_seconds": -1}, "wait_timeout_seconds: Input should be greater than or equal to 0"),
        ({"pools": ["data base"]}, "whitespace"),
        ({"pools": ["api"], "on_blocked": "skip", "wait_timeout_seconds": 5}, "leave one of them out"),
    ],
)
def test_what_cannot_be_is_said(declared: object, said: str) -> None:
    with pytest.raises(ClaimError) as error:
        Declared.of({"penstock": declared})
    assert said in str(error.value)
