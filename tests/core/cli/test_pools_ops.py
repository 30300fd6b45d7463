"""`penstock pools ops`: which op takes which pools, whatever run it was in."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import penstock
import pytest
from configuring import configure
from penstock.settings import Settings

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Json = Callable[..., Any]


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_ops_and_their_pools(cli: Cli, as_json: Json, store_url: str) -> None:
    assert as_json("pools", "ops") == []
    settings = replace(Settings.from_environment(), pool_per_op=("etl.*",))
    with penstock.connect(store_url, deployment="prod", settings=settings) as engine:
        configure(engine, pools={"limits": {"db": 5, "late": {"limit": 5, "granularity": "run"}}})
        for run_id in ("scheduled 1", "scheduled 2"):  # what has been before
            with engine.hold("db:2", "api", run_id=run_id, op_id="load[3]"):
                pass
        with engine.acquire(engine.claim(run_id="3", op_id="x", step="etl.copy")):
            pass
        with engine.hold(run_id="scheduled 3", op_id="no pool"), engine.hold("alone"):  # what holds now
            late = engine.claim("late", run_id="scheduled 3", op_id="report", in_run=True)
            with engine.acquire(late):
                found = as_json("pools", "ops")
                shown = cli("pools", "ops").stdout
    assert {row["op"]: row["pools"] for row in found} == {
        "": {"alone": 1},
        "etl.copy": {"op/prod/etl.copy": 1},
        "load[3]": {"api": 1, "db": 2},
        "report": {"late": 1},
    }
    assert {(row["host"], row["deployment"]) for row in found} == {("process", "prod")}
    (line,) = [line for line in shown.splitlines() if "load[3]" in line]
    assert line.split() == ["process/prod", "load[3]", "api:1,", "db:2"]
    assert as_json("pools", "ops", "--days", "0") == []
