"""What we read of Python definitions without running them, beside what real Dagster has after importing them."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import real_dagster
from penstock_plugins.dagster.code import read
from penstock_plugins.dagster.code_report import CodeReport

EXAMPLES = Path(__file__).parents[1] / "plugins" / "dagster"
PROJECT = EXAMPLES / "project"
DOCUMENTS = sorted((EXAMPLES / "documents").rglob("*.py"))


@pytest.fixture(autouse=True)
def paths() -> Iterator[None]:
    real_dagster.quiet()
    sys.path.insert(0, str(PROJECT))
    yield
    sys.path.remove(str(PROJECT))


@pytest.fixture(scope="module")
def report() -> CodeReport:
    return read(PROJECT)


def modules() -> list[ModuleType]:
    files = sorted((PROJECT / "shop").rglob("*.py"))
    names = [".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return [importlib.import_module(name) for name in names]


def listed(report: CodeReport, file: str) -> str:
    """What the report says cannot be read in a file."""
    return "\n".join(each.subject for each in report.findings if each.kind == "unread" and each.file == file)


def agree(report: CodeReport, module: ModuleType, file: str) -> int:
    """Every definition that the module has is in a row that says the same, or is listed. How many are the same."""
    rows = {row.name: row for row in report.definitions}  # a module has those that it imports, too
    same = 0
    for real in real_dagster.definitions(module):
        row = rows.get(real.name)
        if row is None:
            assert real.name in LISTED_UNDER, f"{real} of {file} is neither read nor listed"
            assert LISTED_UNDER[real.name] in listed(report, file), real
            continue
        if "pool" not in row.unread:
            assert row.pools == real.pools, real
        if real.op_tags is not None:
            if not row.unread:
                assert row.op_tags == real.op_tags, real
            assert row.op_tags.items() <= real.op_tags.items(), real
        same += not row.unread
    return same


# Those that have another name when they run -> how they are listed.
LISTED_UNDER = {
    "copy_of_orders": "asset ? (no pool that can be read)",
    "loop_1": "asset ? (pool in_loop)",
    "under_if": "asset under_if (pool under_if)",
    "joined_x": "asset ? (pool known)",
    "pool_from_spread": "name of asset pool_from_spread",
}


def test_all_definitions_agree_but_those_that_are_listed(report: CodeReport) -> None:
    compared = {}
    for module in modules():
        assert module.__file__ is not None
        file = str(Path(module.__file__).relative_to(PROJECT))
        compared[file] = agree(report, module, file)
    assert sum(compared.values()) >= 40, compared
    names = Counter((row.file, row.name) for row in report.definitions)
    assert not [name for name, count in names.items() if count > 1 and name[1] != "query"]


def test_nothing_is_read_that_is_not_there(report: CodeReport) -> None:
    real = {each.name for module in modules() for each in real_dagster.definitions(module)}
    # What `later` is made of has Dagster's name for it, and nothing else differs.
    assert {row.name for row in report.definitions} <= real


def test_what_bounds_the_runs_of_each_job_agrees(report: CodeReport) -> None:
    loaded = modules()
    repository = importlib.import_module("shop.definitions").defs.get_repository_def()
    real_jobs = real_dagster.jobs(loaded, repository)
    rows = {row.name: row for row in report.runs if row.kind in ("job", "asset job")}
    assert rows.keys() == real_jobs.keys()
    for name, job in real_jobs.items():
        row, real = rows[name], real_dagster.runs_of(job)
        assert row.run_tags == real.run_tags, name
        if row.bound == "unread":
            assert f"the executor of job {name}" in listed(report, row.file)
            continue
        read_most = row.max_concurrent if row.bound == "set" else multiprocessing.cpu_count()
        assert read_most == real.max_concurrent, name
        assert [dict(rule) for rule in row.tag_concurrency_limits] == real.tag_concurrency_limits, name
    assert sum(row.bound != "unread" for row in rows.values()) >= 12


def test_what_schedules_start_agrees(report: CodeReport) -> None:
    import dagster as dg

    starting = importlib.import_module("shop.pipelines.starting")
    rows = {row.name: row for row in report.runs if row.kind == "schedule"}
    context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 1, 2, tzinfo=UTC))
    for schedule in (starting.nightly, starting.unnamed, starting.configuring):
        data = schedule.evaluate_tick(context)
        tags = {key: value for key, value in data.run_requests[0].tags.items() if key != "dagster/schedule_name"}
        assert rows[schedule.name].run_tags == tags
    real = real_dagster.runs_of(starting.unsaid, starting.unnamed.evaluate_tick(context).run_requests[0].run_config)
    assert rows["unsaid_schedule"].bound == "set"
    assert real.max_concurrent == 1
    requested: Any = starting.requesting.evaluate_tick(context).run_requests[0]
    assert "annotates" not in requested.tags
    assert requested.tags["batch"] == "three"


def test_what_dagster_ignores_is_listed(report: CodeReport) -> None:
    ignored = {(each.file, each.line) for each in report.findings if each.kind == "ignored"}
    by_asset_tag = next(row for row in report.definitions if row.name == "by_asset_tag")
    assert (by_asset_tag.file, by_asset_tag.line) in ignored
    assert not by_asset_tag.pools


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_the_examples_of_dagsters_documents_agree(document: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"document_{document.stem}", document)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = read(document)
    assert agree(found, module, document.name) + len(found.runs) > 0
    located = getattr(module, "defs", None)
    if located is None or callable(located):
        return
    for job in located.get_repository_def().get_all_jobs():
        rows = [row for row in found.runs if row.name == job.name]
        rows = rows or [row for row in found.runs if row.kind == "code location"]
        real = real_dagster.runs_of(job)
        most = multiprocessing.cpu_count()
        if rows and rows[0].bound == "set":
            most = rows[0].max_concurrent or 0
        assert real.max_concurrent == most, job.name
        rules = rows[0].tag_concurrency_limits if rows else ()
        assert real.tag_concurrency_limits == [dict(rule) for rule in rules], job.name
