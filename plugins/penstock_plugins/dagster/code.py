"""Pools, op tags and executors in Python definitions, read without running them: `migrate dagster --code PATH`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from penstock.errors import ConfigError, Fault

from penstock_plugins.dagster import code_lines
from penstock_plugins.dagster.code_definitions import Definitions
from penstock_plugins.dagster.code_executors import reaches
from penstock_plugins.dagster.code_files import sources
from penstock_plugins.dagster.code_report import CodeReport, Definition, Finding, Runs, at_once, rule_text
from penstock_plugins.dagster.code_runs import AllRuns
from penstock_plugins.dagster.code_scopes import Project
from penstock_plugins.dagster.code_sites import Site, sites


def read(path: str | Path, run_tag_keys: Iterable[str] = ()) -> CodeReport:
    """What the Python files at or below a path say of concurrency. Nothing of them is imported or run.

    `run_tag_keys` are those of the run-tag rules in force: where only tags of ops or assets have them is told, too.
    Raises ConfigError where there is nothing to read, with the path.
    """
    with _uncollected():
        return _report(Path(path), run_tag_keys)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk all trees again and again: 1 s instead of 6 s for 6 MB."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _report(path: Path, run_tag_keys: Iterable[str]) -> CodeReport:
    try:
        parsed, findings = sources(path)
    except ConfigError as error:
        raise ConfigError([Fault(f"--code {path}: {fault.message}") for fault in error.faults]) from None
    definitions, runs = Definitions(), AllRuns()
    for module in Project(parsed).concerned():
        for site in sites(module):
            definitions.add(site)
            runs.add(site)
    definitions.finish()
    runs.finish()
    rules = [(row, rule) for row in runs.rows for rule in row.tag_concurrency_limits]
    counting = frozenset(rule["key"] for _, rule in rules)
    findings = [
        *findings,
        *definitions.findings,
        *runs.findings,
        *_unreached(definitions, runs.rows),
        *_run_rules_on_ops(definitions, runs.rows, run_tag_keys),
        *_unnamable(definitions.rows),
    ]
    return CodeReport(
        len(parsed),
        tuple(_with_lines(row, runs, counting) for row in sorted(definitions.rows, key=_place)),
        tuple(_run_with_lines(row, runs.of_all) for row in sorted(runs.rows, key=_place)),
        tuple(
            sorted(set(findings), key=lambda each: (each.file, each.line or 0, each.kind, each.subject, each.reason))
        ),
        runs.of_all,
    )


def _with_lines(row: Definition, runs: AllRuns, counting: frozenset[str]) -> Definition:
    of_all = runs.of_all
    within = [] if of_all is None or of_all.bound == "unlimited" else [f"{at_once(of_all)} at once"]
    within += [
        rule_text(rule) for each in runs.rows for rule in each.tag_concurrency_limits if reaches(rule, row.op_tags)
    ]
    airflow, prefect = code_lines.of_definition(row, counting)
    return replace(row, within_run=tuple(dict.fromkeys(within)), airflow=airflow, prefect=prefect)


def _run_with_lines(row: Runs, of_all: Runs | None) -> Runs:
    airflow, prefect = code_lines.of_runs(row, of_all)
    return replace(row, airflow=airflow, prefect=prefect)


def _unreached(definitions: Definitions, runs: list[Runs]) -> Iterator[Finding]:
    """Rules of executors that no op tag matches; Dagster counts nothing under them."""
    told: set[str] = set()
    for row in runs:
        for rule in row.tag_concurrency_limits:
            text = rule_text(rule)
            if text in told or any(reaches(rule, each.op_tags) for each in definitions.rows):
                continue
            told.add(text)
            reason = "no op that could be read has such an op tag"
            if any(rule["key"] in each.run_tags for each in runs):
                reason += "; among run tags it stands in vain, an executor looks at op tags"
            yield Finding("ignored", row.file, row.line, f"the rule {text} of {row.kind} {row.name}", reason)
            yield from _asset_tags(
                definitions.asset_tags, rule["key"], "an executor's rule looks at op tags: `op_tags=`"
            )


def _run_rules_on_ops(definitions: Definitions, runs: list[Runs], keys: Iterable[str]) -> Iterator[Finding]:
    for key in dict.fromkeys(keys):
        if any(key in row.run_tags for row in runs):
            continue
        reason = f"the rule on the run tag {key!r} does not see it: tag the job"
        for row in definitions.rows:
            if key in row.op_tags:
                yield Finding("ignored", row.file, row.line, f"the op tag {key} of {row.kind} {row.name}", reason)
        yield from _asset_tags(definitions.asset_tags, key, reason)


def _asset_tags(tagged: list[tuple[str, Site]], key: str, reason: str) -> Iterator[Finding]:
    for own, site in tagged:
        if own == key:
            yield Finding("ignored", site.given.file, site.line, f"{key} in `tags=` of {site.given.name}", reason)


def _unnamable(rows: list[Definition]) -> Iterator[Finding]:
    for row in rows:
        for pool in row.pools:
            if why := code_lines.unusable(pool):
                yield Finding("differs", row.file, row.line, f"pool {pool!r}", why)


def _place(row: Definition | Runs) -> tuple[str, int, str]:
    return row.file, row.line, row.name
