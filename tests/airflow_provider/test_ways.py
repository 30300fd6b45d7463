"""Which way of waiting a claim takes, and which pools are given back while an operator is deferred."""

from __future__ import annotations

import pytest
from penstock.errors import ConfigError
from penstock_airflow.installation import Installation
from penstock_airflow.ways import Way, is_released, way_of

BY_POOL: tuple[tuple[str, Way], ...] = (("api_fast", "reschedule"), ("api_*", "block"), ("any", "defer"))


@pytest.mark.parametrize(
    ("pools", "otherwise", "expected"),
    [
        ([], "defer", "defer"),
        ([], "block", "block"),
        (["database"], "reschedule", "reschedule"),
        (["api_slow"], "defer", "block"),
        (["api_fast"], "defer", "reschedule"),
        (["api_slow", "api_fast"], "defer", "reschedule"),
        (["api_slow", "database"], "defer", "defer"),
        (["api_fast", "api_slow", "any"], "block", "defer"),
    ],
)
def test_of_several_pools_the_way_that_frees_the_worker_most_counts(
    pools: list[str], otherwise: Way, expected: Way
) -> None:
    assert way_of(pools, otherwise=otherwise, by_pool=BY_POOL) == expected


@pytest.mark.parametrize(
    ("pools", "globs", "released"),
    [
        (["api"], [], False),
        (["api"], ["api"], True),
        (["api", "api_2"], ["api*"], True),
        (["api", "database"], ["api*"], False),
        ([], ["*"], False),
    ],
)
def test_one_pool_that_is_held_holds_the_others(pools: list[str], globs: list[str], *, released: bool) -> None:
    assert is_released(pools, globs) is released


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"waiting": "sleep"}, r"\[penstock\] waiting: 'sleep': one of defer, reschedule, block"),
        ({"waiting_by_pool": (("api", "sleep"),)}, r"\[penstock\] waiting_by_pool: 'sleep': one of defer"),
        ({"enforcement": "maybe"}, r"\[penstock\] enforcement: 'maybe': one of enforce, observe, off"),
        ({"on_store_error": "hope"}, r"\[penstock\] on_store_error: 'hope': one of wait, fail, run"),
        ({"reschedule_seconds": 29.0}, r"\[penstock\] reschedule_seconds: 29: seconds from 30 to 240"),
        ({"reschedule_seconds": 241.0}, r"\[penstock\] reschedule_seconds: 241: seconds from 30 to 240"),
    ],
)
def test_what_cannot_be_is_an_error(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Installation(store_url=None, deployment="tests", **settings)  # type: ignore[arg-type]


def test_the_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "WAITING": "block",
        "WAITING_BY_POOL": "api_* = reschedule, a=b=defer",
        "RELEASE_WHILE_DEFERRED": "api_*, small",
        "EXEMPT_SETUP_TEARDOWN": "True",
        "ENFORCEMENT": "observe",
        "ON_STORE_ERROR": "fail",
        "RESCHEDULE_SECONDS": "45",
        "STORE_RETRY_SECONDS": "7",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"AIRFLOW__PENSTOCK__{name}", value)
    here = Installation.configured()
    assert (here.waiting, here.reschedule_seconds) == ("block", 45.0)
    assert here.waiting_by_pool == (("api_*", "reschedule"), ("a=b", "defer"))
    assert here.release_while_deferred == ("api_*", "small")
    assert here.exempt_setup_teardown
    assert (here.enforcement, here.on_store_error, here.store_retry_seconds) == ("observe", "fail", 7.0)


def test_the_environment_of_all_hosts_counts_where_the_section_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_ENFORCEMENT", "observe")
    monkeypatch.setenv("PENSTOCK_ON_STORE_ERROR", "fail")
    here = Installation.configured()
    assert (here.enforcement, here.on_store_error) == ("observe", "fail")


def test_a_way_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__PENSTOCK__WAITING_BY_POOL", "api")
    with pytest.raises(ConfigError, match=r"waiting_by_pool: 'api'"):
        Installation.configured()
