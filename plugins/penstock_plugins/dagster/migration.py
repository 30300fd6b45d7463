"""From a source to the configuration: what is taken over, where from, and what is not."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from penstock.claim import CAPACITY_MAX, check_pool_name
from penstock.config import Concurrency
from penstock.errors import ClaimError, ConfigError, Fault
from penstock.hookspecs import ImportedConfiguration, Report
from pydantic import ValidationError

from penstock_plugins.dagster import checking, counterparts, helm, limits, pool_limits, run_tags, schema
from penstock_plugins.dagster.limits import Found
from penstock_plugins.dagster.source import READ, Form, Source, find

FEW = 10


def migrated(given: str, options: Mapping[str, str]) -> ImportedConfiguration:
    """What limits at `given`. `options` as in the hook. Raises ConfigError with every fault."""
    source = find(given)
    ignored: tuple[tuple[str, str], ...] = ()
    unknown: tuple[Fault, ...] = ()
    if source.form is Form.HELM:
        made = helm.rendered(source)
        source, ignored, unknown = made.source, made.ignored, made.unknown
    source = replace(source, faults=(*source.faults, *_unknown(source)))
    table = run_tags.read_table(options["tags"]) if "tags" in options else run_tags.TABLE
    found = limits.in_force(checking.parsed(source, os.environ), source, table, os.environ)
    found.left_out += unknown
    found.left_out += [
        source.fault(why, key) for key, why in counterparts.LIMITS_OF_PLUS.items() if key in source.document
    ]
    found.notes += [f"{where}: left out: {why}." for where, why in ignored]
    found.notes += [
        f"line {source.lines.of(place)}: {source.path(place)}: {why}." for place, why in counterparts.without(source)
    ]
    _take_pools(source, options.get("instance_url"), found)
    report = _take_code(options["code"], found) if "code" in options else None
    return ImportedConfiguration(
        _trimmed(found.block),
        notes=tuple(found.notes),
        origins=found.origins,
        left_out=tuple(found.left_out),
        report=report,
    )


def _unknown(source: Source) -> Iterator[Fault]:
    known = sorted(READ | counterparts.TOP.keys())
    for key in counterparts.unknown_keys(source):
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else "Dagster refuses it, too; take it out"
        yield source.fault(f"no such key; {hint}", key)


def _take_code(path: str, found: Found) -> Report:
    """The report on the definitions there; the limits within a run that hold for all of them go into the block."""
    from penstock_plugins.dagster import code  # noqa: PLC0415  # loaded where it is asked for

    rules = found.block.get("runs", {}).get("tag_concurrency_limits", ())
    report = code.read(path, [rule["key"] for rule in rules])
    within = report.of_all
    if within is not None and within.bound == "set":
        origin = f"{within.place}: the executor of {within.name}"
        try:
            given = [schema.TagRule.model_validate(dict(rule)) for rule in within.tag_concurrency_limits]
            ops = {
                "max_concurrent": within.max_concurrent,
                "tag_concurrency_limits": [run_tags.Rule(rule.key, rule.value, rule.limit).as_dict() for rule in given],
            }
            Concurrency.model_validate({"ops": ops})
        except ValidationError:
            why = f"a limit is a number from 0 to {CAPACITY_MAX}, a rule has a key, a limit and perhaps a value"
            found.left_out.append(Fault(f"{why}; write `ops` by hand", path=origin))
            return report
        found.block["ops"] = ops
        found.origins["ops.max_concurrent"] = origin
        found.origins |= {f"ops.tag_concurrency_limits[{index}]": origin for index in range(len(given))}
    elif within is None and any(row.kind == "code location" for row in report.runs):
        found.notes.append(
            f"{path}: no `ops` is written: code locations have different executors, or one that cannot be read; "
            "the lines of the report say it for each job."
        )
    elif within is not None and within.bound == "cpu_count":
        found.notes.append(
            f"{path}: no `ops` is written: as many ops of a run go at once as its machine has CPUs, which no file can "
            "say; the lines of the report say it for each job."
        )
    return report


def _take_pools(source: Source, url: str | None, found: Found) -> None:
    """The limits of pools, from the database that is named, else from the one in the home."""
    storage: Any = source.document.get("storage")
    if url is None and source.home is not None and not {"storage", "event_log_storage"} & source.document.keys():
        here = pool_limits.in_home(source.home)
        url = str(here) if here is not None else None
    if url is None:
        where = " (PostgreSQL)" if isinstance(storage, dict) and "postgres" in storage else ""
        found.notes.append(f"Limits of single pools are in Dagster's database alone{where}: name it by --instance-url.")
        return
    try:
        rows = pool_limits.read(url)
    except ConfigError as error:
        raise ConfigError([replace(fault, path="--instance-url") for fault in error.faults]) from None
    defaults = [row.name for row in rows if row.by_default]
    taken = found.block["pools"].setdefault("limits", {})
    for row in rows:
        if row.by_default:
            continue
        if (why := _unusable(row)) is not None:
            found.left_out.append(Fault(why, path=f"pool {row.name!r} of limit {row.limit}"))
            continue
        taken[row.name] = row.limit
        found.origins[f"pools.limits.{row.name}"] = "Dagster's database: set for this pool"
    if defaults:
        more = f" and {len(defaults) - FEW} more" if len(defaults) > FEW else ""
        now = found.block["pools"].get("default_limit")
        found.notes.append(
            f"Pools on the default limit ({'none is set now' if now is None else now}), which need no line of their "
            f"own: {', '.join(defaults[:FEW])}{more}."
        )


def _unusable(row: pool_limits.PoolLimit) -> str | None:
    if not 0 <= row.limit <= CAPACITY_MAX:
        return f"a limit is a number from 0 to {CAPACITY_MAX}; set it by `penstock pools set`"
    try:
        check_pool_name(row.name)
    except ClaimError as error:
        return f"{error}; give it another name, in the code, too"
    return None


def _trimmed(block: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in block.items() if part}
