"""The lines for Prefect that `penstock migrate dagster --code` writes, at work on a real server."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import penstock
import pytest
from configuring import configure
from penstock.demo.prefect_host import PrefectHost
from penstock.store.contract import Event
from penstock_plugins.dagster.code import read
from penstock_prefect import claims
from penstock_prefect.claims import FlowFacts
from prefect_runs import succeed

DAGSTER = Path(__file__).parents[1] / "plugins" / "dagster"
SCRIPT = Path(__file__).parent / "flows" / "dagster_lines.py"
REPORT = read(DAGSTER)
Granted = tuple[dict[str, list[set[str]]], dict[str, int | None]]
TAGS_OF_STEP = {"database", "team", "api"}
TAGS = {key for row in REPORT.definitions for key in row.op_tags if not key.startswith("dagster")}


@pytest.fixture(scope="module")
def granted(host: PrefectHost) -> Iterator[Granted]:
    """Task → the limits of each of its grants, when all has run once, and the capacity of each limit.

    A rule for each tag shows who has it.
    """
    each = {"applyLimitPerUniqueValue": True}
    rules = [{"key": key, "value": each, "limit": 50} for key in sorted(TAGS)]
    with penstock.connect(host.store_url) as engine:
        configure(engine, ops={"max_concurrent": 100, "tag_concurrency_limits": rules})
        since = engine.store.snapshot_time()
        succeed(host, host.run_flow("dagster_lines", SCRIPT, str(DAGSTER)), seconds=240)
        found: dict[str, list[set[str]]] = {}
        for row in engine.store.history(since=since):
            if row.event is Event.GRANTED and row.label is not None:
                task = row.label.rpartition(" ")[2].rpartition("-")[0]
                slots = {key if number == 1 else f"{key}:{number}" for key, number in row.slots.items()}
                found.setdefault(task, []).append(slots)
        yield found, {row.key: row.capacity for row in engine.store.limit_rows()}


def rules_of(limits: set[str]) -> set[str]:
    """The rules on op tags among limits, without the run that they count in."""
    return {limit.split(":", 2)[2] for limit in limits if limit.startswith("run_op_tag:")}


def test_ops_have_their_pools_slots_and_tags(granted: Granted) -> None:
    ops = {f"op_{number}": row for number, row in enumerate(REPORT.definitions) if row.prefect}
    assert len(ops) > 20
    for name, row in ops.items():
        (limits,) = granted[0][name]
        of_slots = f":{row.slots}" if row.slots != 1 else ""
        assert {limit for limit in limits if limit.startswith("pool:")} == {
            f"pool:{pool}{of_slots}" for pool in row.pools
        }
        tags = re.findall(r'"([^":]+):([^"]*)"', row.prefect.partition("tags=")[2])
        assert rules_of(limits) == {f"{key}=*:{value}" for key, value in tags}


def test_runs_have_their_own_bounds(granted: Granted) -> None:
    """Each flow has one task, with every tag that a rule looks at, and they ran in this order."""
    rows = [row for row in REPORT.runs if row.prefect and row.prefect.startswith("@")]
    assert len(rows) > 5
    for row, limits in zip(rows, granted[0]["step"], strict=True):
        (bound,) = (limit for limit in limits if limit.startswith("run_ops:"))
        assert granted[1][bound] == (row.max_concurrent or os.cpu_count()), row
        of_file = len(TAGS_OF_STEP)  # the configured rules, where the line says none
        assert len(rules_of(limits)) == (len(row.tag_concurrency_limits) or of_file), row


def test_deployments_and_their_runs_have_their_tags(host: PrefectHost) -> None:
    host.create_work_pool("nobody's", "process")
    found = 0
    for number, row in enumerate(REPORT.runs):
        call = re.search(r"(deploy|run_deployment)\(tags=(\[.*?\])\)", row.prefect or "")
        if call is None:
            continue
        tags = ast.literal_eval(call[2])
        of_deployment, of_run = ({"tags": tags}, {}) if call[1] == "deploy" else ({}, {"tags": tags})
        deployment = host.deploy(f"dagster-{number}", f"{SCRIPT}:definitions", "nobody's", **of_deployment)
        run = host.flow_run(host.run_deployment(deployment, **of_run))
        facts = FlowFacts(flow_run_id="1", flow_name="f", tags=frozenset(run["tags"]))
        known = {key: value for key, value in claims.run_tags(facts)[0].items() if not key.startswith("prefect/")}
        assert known == {key: value for key, value in row.run_tags.items() if not key.startswith("dagster")}
        found += 1
    assert found > 5
