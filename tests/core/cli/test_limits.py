"""`penstock limits` and `penstock pools`: what is set, what is kept, what is refused with the remedy."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import Any

import penstock
import pytest
from penstock import changes, edits
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.errors import LimitNotSettable

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Json = Callable[..., Any]
on_both = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


@on_both
def test_every_settable_key_is_set_listed_and_deleted(cli: Cli, as_json: Json, store_url: str) -> None:
    keys = ["pool:db", "runs", "run_tag:team", "run_tag:team=ml", "run_tag:customer=*"]
    for limit, key in enumerate(keys):
        assert cli("limits", "set", key, str(limit)).stdout == f"{key}: {limit}\n"
    assert cli("limits", "set", "pools.default_limit", "7").returncode == 0
    listed = {limit["key"]: limit["capacity"] for limit in as_json("limits", "list")}
    assert listed == {"pool:db": 0, "runs": 1, "run_tag:team": 2, "run_tag:team=ml": 3}
    with penstock.connect(store_url) as engine:
        concurrency = engine.configuration()[1]
    assert concurrency.pools.default_limit == 7
    per_value = concurrency.runs.tag_concurrency_limits[-1]
    assert (per_value.key, per_value.per_unique_value, per_value.limit) == ("customer", True, 4)
    assert cli("limits", "delete", "pool:db").stdout == "pool:db: deleted; now the default, 7\n"
    for key in [*keys[1:], "pools.default_limit"]:
        assert cli("limits", "delete", key).stdout == f"{key}: deleted; unlimited now\n"
    for key in [*keys, "pools.default_limit"]:
        again = cli("limits", "delete", key)
        assert again.returncode == 1
        assert f"{key} is not set" in again.stderr


@on_sqlite
def test_a_rule_that_is_set_again_keeps_its_place_and_is_one(cli: Cli, store_url: str) -> None:
    for key, limit in (("run_tag:a", 1), ("run_tag:b", 2), ("run_tag:a", 3)):
        assert cli("limits", "set", key, str(limit)).returncode == 0
    with penstock.connect(store_url) as engine:
        rules = engine.configuration()[1].runs.tag_concurrency_limits
    assert [(rule.key, rule.limit) for rule in rules] == [("a", 3), ("b", 2)]


@on_sqlite
@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("run_ops:airflow/prod/etl", "the rule ops.max_concurrent"),
        ("run_op_tag:airflow/prod/etl:team=ml", "ops.tag_concurrency_limits"),
        ("run_tag:customer=*:acme", "the rule 'run_tag:customer=*'"),
        ("run_tag:", "settable are pool:NAME"),
        ("run_tag:=x", "names no tag"),
        ("database", "settable are pool:NAME"),
        ("runs:5", "settable are pool:NAME"),
        ("pool:a b", "whitespace"),
        ("pool:a:5", "cannot end in"),
        ("pool:\udcff", "not UTF-8"),
    ],
)
def test_other_keys_are_bad_usage_and_name_the_rule(cli: Cli, as_json: Json, key: str, remedy: str) -> None:
    for command in (("limits", "set", key, "1"), ("limits", "delete", key)):
        done = cli(*command)
        assert done.returncode == 2
        assert remedy in done.stderr
        assert done.stdout == ""
    assert as_json("limits", "list") == []


def test_a_key_may_be_written_as_it_is_listed_or_as_it_is_meant() -> None:
    for text in ("run_tag:dagster/backfill=a:b", "run_tag:dagster%2Fbackfill=a%3Ab"):
        target = edits.target_of(text)
        assert target.key == "run_tag:dagster%2Fbackfill=a%3Ab"
        assert target.rule is not None
        assert (target.rule.key, target.rule.value) == ("dagster/backfill", "a:b")
    star = edits.target_of("run_tag:key=%2A").rule
    assert star is not None
    assert star.value == "*"
    empty = edits.target_of("run_tag:key=").rule
    assert empty is not None
    assert empty.value == ""
    with pytest.raises(LimitNotSettable):
        edits.target_of("")


@on_sqlite
@pytest.mark.parametrize("limit", ["10001", "x", "1.5", ""])
def test_a_limit_out_of_bounds_is_bad_usage(cli: Cli, limit: str) -> None:
    assert cli("limits", "set", "runs", limit).returncode == 2
    assert cli("pools", "set", "a", limit).returncode == 2


@on_sqlite
def test_setting_a_limit_keeps_what_else_the_pool_says(cli: Cli, as_json: Json) -> None:
    assert cli("pools", "set", "db", "2", "--description", "the [b]warehouse[/b]").returncode == 0
    assert cli("limits", "set", "pool:db", "3").returncode == 0
    assert cli("pools", "set", "db", "4", "--granularity", "op").returncode == 0
    pool = as_json("pools", "get", "db")
    assert (pool["capacity"], pool["description"], pool["granularity"]) == (4, "the [b]warehouse[/b]", "op")
    assert "the [b]warehouse[/b]" in cli("pools", "list").stdout


@on_both
def test_changes_at_the_same_time_all_come_through(store_url: str) -> None:
    def set_one(name: str) -> None:
        with penstock.connect(store_url) as engine:
            target = edits.target_of(f"pool:{name}")
            changes.edit(engine, lambda concurrency: edits.with_limit(concurrency, target, 1))

    names = [f"p{number}" for number in range(6)]
    threads = [threading.Thread(target=set_one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with penstock.connect(store_url) as engine:
        assert sorted(engine.configuration()[1].pools.limits) == names


@on_sqlite
def test_names_that_would_act_on_the_terminal_are_escaped(cli: Cli, store_url: str) -> None:
    with penstock.connect(store_url) as engine, engine.hold(run_id="etl\x1b[31m\u202e 🚰 :smile: [red]", op_id="a\nb"):
        shown = cli("status")
    assert shown.returncode == 0, shown.stderr
    assert r"etl\x1b[31m\u202e 🚰 :smile: [red]" in shown.stdout
    assert r"a\nb" in shown.stdout


def test_an_edit_is_made_again_on_what_somebody_else_put_in_force(engine: Engine) -> None:
    looks: list[Concurrency] = []

    def change(concurrency: Concurrency) -> Concurrency:
        looks.append(concurrency)
        if len(looks) == 1:
            version, _ = engine.configuration()
            changes.apply(
                engine, Concurrency.model_validate({"runs": {"max_concurrent_runs": 3}}), expected_version=version
            )
        return edits.with_limit(concurrency, edits.target_of("pool:a"), 1)

    changes.edit(engine, change)
    concurrency = engine.configuration(fresh=True)[1]
    assert (len(looks), concurrency.runs.capacity, concurrency.pools.limits["a"].limit) == (2, 3, 1)
