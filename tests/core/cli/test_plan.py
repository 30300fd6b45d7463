"""`penstock plan` and `apply`: what is shown, whom it touches, and that nothing else than what was shown is done."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.decision import Granted, Waiting
from penstock.engine import Engine
from penstock.request import Request
from situations import CALM, NewEngine

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Json = Callable[..., Any]
on_both = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)

WANTED = [["db"], ["db"], ["db", "api"]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "penstock.yaml"


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """One that does nothing by itself: however slow the machine, nobody is parked meanwhile."""
    return new_engine(settings=CALM)


def hold(engine: Engine, *pools: str, **facts: Any) -> str:
    return engine.acquire(engine.claim(*pools, **facts), on_blocked="fail").claim_id


def wait(engine: Engine, *pools: str, **facts: Any) -> Request:
    request = engine.request(engine.claim(*pools, **facts))
    assert isinstance(request.step(), Waiting)
    return request


def planned(engine: Engine, **block: Any) -> dict[str, Any]:
    """The limits that such a plan touches, by key."""
    limits = changes.plan(engine, Concurrency.model_validate(block), prune=True).as_dict()["limits"]
    return {limit["key"]: limit for limit in limits}


@on_both
def test_plan_names_changes_and_touches_nothing(cli: Cli, as_json: Json, file: Path, engine: Engine) -> None:
    file.write_text("concurrency: {pools: {limits: {db: 1}}, runs: {max_concurrent_runs: 2}}")
    plan = as_json("plan", str(file))
    assert plan.keys() == {"version", "changes", "limits", "kept", "warnings"}
    assert plan["version"] == 0
    assert plan["changes"] == [
        {"path": "concurrency.pools.limits.db.limit", "before": None, "after": 1},
        {"path": "concurrency.runs.max_concurrent_runs", "before": None, "after": 2},
    ]
    assert [limit["key"] for limit in plan["limits"]] == ["pool:db", "runs"]
    assert cli("plan", str(file)).returncode == 0
    assert cli("plan", str(file), "--exit-code").returncode == 3
    assert engine.configuration(fresh=True)[0] == 0
    assert cli("apply", str(file), "--yes").returncode == 0
    done = cli("plan", str(file), "--exit-code")
    assert (done.returncode, done.stdout) == (0, "nothing to change\n")


@on_both
def test_who_holds_and_who_waits_is_shown_for_each_limit(cli: Cli, as_json: Json, file: Path, engine: Engine) -> None:
    changes.apply(engine, Concurrency.model_validate({"pools": {"limits": {"db": 2, "api": 1}}}), expected_version=0)
    holders = [hold(engine, "db", run_id="r1", op_id="a"), hold(engine, "db", run_id="r1", op_id="b")]
    hold(engine, "api", run_id="r1", op_id="c")
    requests = [wait(engine, *pools, run_id="r2", op_id=op) for op, pools in zip("def", WANTED, strict=True)]
    waiters = [request.claim_id for request in requests]
    file.write_text("concurrency: {pools: {limits: {db: 4, api: 1}}}")
    (limit,) = as_json("plan", str(file))["limits"]
    assert limit["effect"] == "grows: 2 waiters may start, 1 waiter must go on waiting"
    assert (limit["held"], limit["holders"], limit["may_start"]) == (2, holders, waiters[:2])
    assert limit["waiters"] == waiters
    text = cli("plan", str(file)).stdout
    assert "pool:db  2 -> 4\n  grows: 2 waiters may start" in text
    assert "held by: process/process r1 a, process/process r1 b\n" in text
    assert "may start: process/process r2 d, process/process r2 e\n" in text
    assert cli("apply", str(file), "--yes").returncode == 0
    assert [type(request.step()) for request in requests] == [Granted, Granted, Waiting]  # as it was foretold


def test_the_effect_of_every_kind_of_change(engine: Engine, configure: Callable[..., None]) -> None:
    rule = {"key": "team", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    configure(pools={"default_limit": 5, "limits": {"db": 5, "gone": 9, "wide": 4}})
    for op in "abc":
        hold(engine, "db", op_id=op)
        hold(engine, "other", op_id=f"o{op}")
    hold(engine, "wide:3", op_id="w")
    wait(engine, "wide:2", op_id="v")
    engine.acquire(engine.run_claim("r1", tags={"team": "ml"}))
    touched = planned(
        engine,
        pools={"default_limit": 1, "limits": {"db": 2, "wide": 1, "new": 1}},
        runs={"max_concurrent_runs": 0, "tag_concurrency_limits": [rule]},
    )
    assert {key: limit["effect"] for key, limit in touched.items()} == {
        "pool:db": "shrinks: 3 held, 1 over the new 2 drains",
        "pool:gone": "deleted: falls to the default",
        "pool:new": "shrinks",
        "pool:other": "shrinks: 3 held, 2 over the new 1 drain",
        "pool:wide": "shrinks: 3 held, 2 over the new 1 drain, 1 waiter would need more than that",
        "run_tag:team=*:ml": "becomes limited: 1 that already runs will not be counted",
        "runs": "closes: 1 held, 1 over the new 0 drains",
    }
    touched = planned(engine)
    assert touched["pool:db"]["effect"] == "deleted: becomes unlimited"
    assert touched["pool:wide"]["effect"] == "deleted: becomes unlimited: 1 waiter may start"
    assert touched["pool:other"]["effect"] == "becomes unlimited"


def test_an_op_comes_into_the_queue_after_its_run(engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"db": 0}}, runs={"max_concurrent_runs": 0})
    run = engine.request(engine.run_claim("r1")).step()
    assert isinstance(run, Waiting)
    wait(engine, "db", run_id="r1", op_id="a", in_run=True)
    assert [row.claim.claim_id for row in engine.store.snapshot().claims] == [run.claim_id]
    touched = planned(engine, pools={"limits": {"db": 1}}, runs={"max_concurrent_runs": 1})
    assert (touched["runs"]["may_start"], touched["pool:db"]["may_start"]) == ([run.claim_id], [])


@on_sqlite
def test_pools_that_the_file_does_not_name_stay_or_are_pruned(cli: Cli, as_json: Json, file: Path) -> None:
    assert cli("pools", "set", "db", "2").returncode == 0
    file.write_text("concurrency: {pools: {default_limit: 1}}")
    assert as_json("plan", str(file))["kept"] == [{"name": "db", "limit": 2}]
    assert "pool db stays at 2" in cli("plan", str(file)).stdout
    plan = as_json("plan", str(file), "--prune")
    assert plan["kept"] == []
    (limit,) = plan["limits"]
    assert limit["effect"] == "deleted: falls to the default"
    assert (limit["before"], limit["after"]) == (
        {"capacity": 2, "source": "explicit", "granularity": "op"},
        {"capacity": 1, "source": "default", "granularity": "op"},
    )


@on_sqlite
def test_apply_asks_and_does_what_it_is_told(cli: Cli, engine: Engine, file: Path) -> None:
    file.write_text("concurrency: {runs: {max_concurrent_runs: 2}}")
    done = cli("apply", str(file))
    assert done.returncode == 2
    assert "--yes" in done.stderr
    done = cli("apply", str(file), answer="n\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Apply? [y/N]: nothing was changed")
    assert engine.configuration(fresh=True)[0] == 0
    assert cli("apply", str(file), answer="").returncode == 1  # the terminal was closed
    done = cli("apply", str(file), answer="y\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Apply? [y/N]: applied as version 1")


@on_sqlite
def test_apply_commits_only_what_was_shown(
    cli: Cli, engine: Engine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("concurrency: {runs: {max_concurrent_runs: 2}}")

    def agree_late(_question: str) -> bool:
        changes.apply(engine, Concurrency.model_validate({"runs": {"max_concurrent_runs": 9}}), expected_version=0)
        return True

    monkeypatch.setattr(click, "confirm", agree_late)
    done = cli("apply", str(file), answer="")
    assert done.returncode == 1
    assert "look again" in done.stderr
    assert engine.configuration(fresh=True)[1].runs.capacity == 9


@on_sqlite
def test_faults_and_warnings_name_the_file(cli: Cli, file: Path) -> None:
    file.write_text("concurrency:\n  pool: {}\n  runs: {max_concurrent_runs: x}\n")
    for command in (("plan", str(file), "--json"), ("apply", str(file), "--yes")):
        done = cli(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{file}: line 2: concurrency.pool: no such key" in done.stderr
        assert f"{file}: line 3: concurrency.runs.max_concurrent_runs" in done.stderr
    done = cli("plan", str(file.with_name("absent.yaml")))
    assert (done.returncode, done.stderr.count("absent.yaml")) == (1, 1)
    file.write_text("concurrency: {default_op_concurrency_limit: 3}")
    assert "warning: line 1: concurrency.default_op_concurrency_limit: deprecated" in cli("plan", str(file)).stderr
    done = cli("plan", str(file), "--json")
    assert json.loads(done.stdout)["warnings"][0]["line"] == 1


@on_both
def test_changes_that_touch_nobody_are_named(
    cli: Cli, file: Path, configure: Callable[..., None], engine: Engine
) -> None:
    each = {"key": "customer", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    configure(pools={"limits": {"db": 2}})
    hold(engine, "db", op_id="a")
    file.write_text(
        json.dumps(
            {
                "concurrency": {
                    "pools": {
                        "default_limit": 3,
                        "op_granularity_run_buffer": 1,
                        "limits": {"db": {"limit": 1, "description": "one"}},
                    },
                    "runs": {"tag_concurrency_limits": [{"key": "team", "value": "a=b", "limit": 1}, each]},
                    "ops": {"max_concurrent": 2},
                }
            }
        )
    )
    text = cli("plan", str(file)).stdout
    assert "pool:db  2 -> 1\n" in text
    assert "run_tag:team=a%3Db  unlimited -> 1\n" in text
    (idle,) = [line for line in text.splitlines() if line.startswith("touches nobody now: ")]
    assert idle.removeprefix("touches nobody now: concurrency.").split(", concurrency.") == [
        "ops.max_concurrent",
        "pools.default_limit",
        "pools.op_granularity_run_buffer",
        "runs.tag_concurrency_limits[customer=*]",
    ]
    configure(pools={"limits": {"db": 2}})
    engine.acquire(engine.run_claim("r1", tags={"customer": "acme"}))
    hold(engine, "other", run_id="r1", op_id="b", in_run=True)
    (idle,) = [line for line in cli("plan", str(file)).stdout.splitlines() if line.startswith("touches nobody now: ")]
    assert idle == "touches nobody now: concurrency.pools.op_granularity_run_buffer"
