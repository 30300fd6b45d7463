"""What Dagster itself makes of a dagster.yaml, and what we make of it, in the same words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import dagster._check as check
from dagster._core.errors import DagsterError
from dagster._core.instance.config import ConcurrencyConfig
from dagster._core.instance.ref import InstanceRef
from dagster._core.run_coordinator import QueuedRunCoordinator
from penstock.config import Concurrency
from penstock.config_file import read
from penstock.config_writer import written
from penstock.errors import ConfigError
from penstock_plugins.dagster.migration import migrated
from penstock_plugins.dagster.run_tags import TABLE
from yaml import YAMLError

GATE_OFF = 10_000


@dataclass(frozen=True)
class Effective:
    """The values in force. `runs` None: any number; `rules` in order: key, value (True: each), limit."""

    runs: int | None
    rules: tuple[tuple[str, str | bool, int], ...]
    default_limit: int | None
    granularity: str
    buffer: int


def theirs(folder: Path, environ: dict[str, str]) -> Effective | str:
    """Dagster's values, or why it refuses them."""
    with mock.patch.dict(os.environ, environ):
        try:
            ref = InstanceRef.from_dir(str(folder))
            coordinator = ref.run_coordinator
            queue = coordinator.get_run_queue_config() if isinstance(coordinator, QueuedRunCoordinator) else None
            config = ConcurrencyConfig.from_concurrency_settings(ref.settings.get("concurrency", {}), queue)
        # Its parser stumbles over blocks that are null or no blocks (defect 12).
        except (DagsterError, check.CheckError, YAMLError, TypeError, AttributeError, UnicodeDecodeError) as error:
            return f"{type(error).__name__}: {error}"
    pools, runs = config.pool_config, config.run_queue_config
    return Effective(
        None if runs is None or runs.max_concurrent_runs == -1 else runs.max_concurrent_runs,
        tuple(_rule(rule) for rule in (runs.tag_concurrency_limits if runs else ())),
        pools.default_pool_limit,
        pools.pool_granularity.value if pools.pool_granularity else "op",
        runs.op_concurrency_slot_buffer
        if runs and runs.should_block_op_concurrency_limited_runs
        else GATE_OFF
        if runs
        else pools.op_granularity_run_buffer or 0,
    )


def _rule(rule: dict[str, Any]) -> tuple[str, str | bool, int]:
    value = rule.get("value", False)
    return rule["key"], value["applyLimitPerUniqueValue"] if isinstance(value, dict) else value, rule["limit"]


def ours(folder: Path, environ: dict[str, str]) -> Effective | str:
    """Our values, by way of the file that is written; or why we refuse them."""
    as_they_are = folder / "tags.yaml"
    as_they_are.write_text("".join(f"'{rule}':\n" for rule in TABLE))
    with mock.patch.dict(os.environ, environ):
        try:
            found = migrated(str(folder / "dagster.yaml"), {"tags": str(as_they_are)})
        except ConfigError as error:
            return str(error)
    concurrency = Concurrency.model_validate(found.concurrency)
    assert read(written(concurrency, found.origins)).concurrency == concurrency
    pools, runs = concurrency.pools, concurrency.runs
    rules = (
        (rule.key, True if rule.per_unique_value else False if rule.value is None else str(rule.value), rule.limit)
        for rule in runs.tag_concurrency_limits
    )
    return Effective(
        runs.capacity, tuple(rules), pools.default_limit, pools.granularity.value, pools.op_granularity_run_buffer
    )
