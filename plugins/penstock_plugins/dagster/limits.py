"""What limits in Dagster's settings, by Dagster's own rules of precedence. Pure: the environment is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.claim import CAPACITY_MAX
from penstock.errors import ConfigError, Fault
from penstock.yaml_lines import Location
from pydantic import ValidationError

from penstock_plugins.dagster import schema
from penstock_plugins.dagster.checking import QUEUED, bounded, fault_of, rules_in_range
from penstock_plugins.dagster.run_tags import Rule, advice, translated
from penstock_plugins.dagster.source import Source

WITHOUT_QUEUE = frozenset({"DefaultRunCoordinator", "SyncInMemoryRunCoordinator"})
DEFAULT_RUNS = 10


@dataclass(slots=True)
class Found:
    """`block` is the inside of a `concurrency:` block of Penstock; `origins` says where its values come from."""

    block: dict[str, Any] = field(default_factory=lambda: {"pools": {}, "runs": {}})
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)

    def put(self, part: str, key: str, value: Any, origin: str) -> None:
        """Set one value."""
        self.block[part][key] = value
        self.origins[f"{part}.{key}"] = origin


def in_force(
    settings: schema.Settings, source: Source, table: Mapping[str, tuple[str, ...]], environ: Mapping[str, str]
) -> Found:
    """The limits that hold under these settings, defaults written out. Raises ConfigError."""
    found = Found()
    block = settings.concurrency or schema.Concurrency()
    queue, place = _queue(settings, source, found)
    _pools(block, queue, place, source, found)
    if queue is None:
        _no_queue(settings, source, found)
    else:
        _runs(block.runs or schema.Runs(), queue, place, source, found, environ)
        _rules(block.runs or schema.Runs(), queue, place, source, found, table)
    return found


def _queue(settings: schema.Settings, source: Source, found: Found) -> tuple[schema.Queue | None, Location]:
    """The keys of the queue and where they stand; None: runs are not queued. Raises ConfigError."""
    if settings.run_queue is not None:
        return settings.run_queue, ("run_queue",)
    coordinator = settings.run_coordinator
    if coordinator is None:
        return schema.Queue(), ("run_queue",)
    if coordinator.class_ in WITHOUT_QUEUE:
        return None, ()
    place: Location = ("run_coordinator", "config")
    config = dict(coordinator.config or {})
    if coordinator.class_ != QUEUED:
        message = (
            f"{coordinator.module}.{coordinator.class_} is a class of your own: what it limits by itself cannot be "
            f"read; the keys of {QUEUED} in its config are taken as that one means them"
        )
        found.left_out.append(source.fault(message, "run_coordinator", "class"))
        for name in config.keys() - schema.Queue.model_fields.keys():
            found.left_out.append(source.fault("only that class knows what this key does", *place, name))
            del config[name]
    try:
        return schema.Queue.model_validate(config), place
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise ConfigError([fault_of({**each, "loc": (*place, *each["loc"])}, source) for each in errors]) from None


def _number(value: Any, source: Source, environ: Mapping[str, str], *place: str | int) -> tuple[int, str]:
    """A number and where it comes from, perhaps by way of the environment. Raises ConfigError."""
    origin = source.origin(*place)
    if not isinstance(value, schema.Env):
        return value, origin
    if value.env not in environ:
        message = f"the environment variable {value.env} is not set here; set it for this command, as Dagster has it"
        raise ConfigError([source.fault(message, *place)])
    try:
        # Not told what it is: a variable may hold a secret.
        return int(environ[value.env]), f"{origin}, from the environment variable {value.env}"
    except ValueError:
        message = f"the environment variable {value.env} holds no whole number"
        raise ConfigError([source.fault(message, *place)]) from None


def _runs(
    runs: schema.Runs, queue: schema.Queue, place: Location, source: Source, found: Found, environ: Mapping[str, str]
) -> None:
    key = "max_concurrent_runs"
    if runs.max_concurrent_runs is not None:
        found.put("runs", key, runs.max_concurrent_runs, source.origin("concurrency", "runs", key))
    elif queue.max_concurrent_runs is not None:
        value, origin = _number(queue.max_concurrent_runs, source, environ, *place, key)
        if not -1 <= value <= CAPACITY_MAX:
            message = f"{value} found; -1 (no limit) to {CAPACITY_MAX} is expected; Dagster, too, refuses less than -1"
            raise ConfigError([source.fault(message, *place, key)])
        found.put("runs", key, value, origin)
    else:
        found.put("runs", key, DEFAULT_RUNS, "Dagster's default: it is set nowhere")


def _rules(
    runs: schema.Runs,
    queue: schema.Queue,
    place: Location,
    source: Source,
    found: Found,
    table: Mapping[str, tuple[str, ...]],
) -> None:
    key = "tag_concurrency_limits"
    rules, where = runs.tag_concurrency_limits, ("concurrency", "runs", key)
    if "tag_concurrency_limits" not in runs.model_fields_set:
        rules, where = queue.tag_concurrency_limits, (*place, key)  # type: ignore[assignment]
        if faults := list(rules_in_range(rules, source, *where)):
            raise ConfigError(faults)
    taken: set[tuple[str, str | bool]] = set()
    for index, given in enumerate(rules or ()):
        rule = Rule(given.key, given.value, given.limit)
        origin = source.origin(*where, index)
        others = translated(rule, table)
        if others:
            origin += f": {rule.name}"
        if len(others) > 1:
            names = " and ".join(other.name for other in others)
            found.notes.append(
                f"{source.path((*where, index))}: one limit of {rule.limit} over all becomes one for each of {names}; "
                "to count them together, tag both alike and write one rule."
            )
        elif not others and (what := advice(rule)) is not None:
            origin += f"\nNo host sets this tag by itself: {what}"
        for other in others or [rule]:
            if (other.key, other.value) in taken:
                message = f"becomes {other.name}, as another rule does; give them different tags by --tags"
                raise ConfigError([source.fault(message, *where, index)])
            taken.add((other.key, other.value))
            listed = found.block["runs"].setdefault(key, [])
            found.origins[f"runs.{key}[{len(listed)}]"] = origin
            listed.append(other.as_dict())


def _pools(
    block: schema.Concurrency, queue: schema.Queue | None, place: Location, source: Source, found: Found
) -> None:
    pools, here = block.pools or schema.Pools(), ("concurrency", "pools")
    unset = "Dagster's default: it is set nowhere"
    if pools.default_limit is not None:
        found.put("pools", "default_limit", pools.default_limit, source.origin(*here, "default_limit"))
    elif block.default_op_concurrency_limit is not None:
        old = "default_op_concurrency_limit"
        found.put("pools", "default_limit", block.default_op_concurrency_limit, source.origin("concurrency", old))
    if found.block["pools"].get("default_limit") == 0:
        found.notes.append(
            "pools.default_limit 0 closes every pool without a limit of its own; Dagster's run queue takes it for none."
        )
    if "default_limit" in found.block["pools"]:
        found.notes.append(
            "In Airflow the default limit reaches a task's `pool=` only if a glob of `[penstock] pools` fits, as *."
        )
    granularity = pools.granularity or "op"
    found.put("pools", "granularity", granularity, source.origin(*here, "granularity") if pools.granularity else unset)
    key, blocking = "op_granularity_run_buffer", queue.block_op_concurrency_limited_runs if queue else None
    old_place = (*place, "block_op_concurrency_limited_runs")
    if blocking is not None and blocking.enabled is False:
        if blocking.op_concurrency_slot_buffer:
            message = "Dagster refuses it while block_op_concurrency_limited_runs.enabled is false; take it out"
            raise ConfigError([source.fault(message, *old_place, "op_concurrency_slot_buffer")])
        origin = f"{source.origin(*old_place, 'enabled')}: no run is held back for full pools"
        if granularity == "run":
            found.notes.append(
                f"{origin}: with it Dagster enforces no pool of run granularity at all. Here they are enforced."
            )
        found.put("pools", key, CAPACITY_MAX, origin)
        return
    if pools.op_granularity_run_buffer is not None:
        found.put("pools", key, pools.op_granularity_run_buffer, source.origin(*here, key))
    elif blocking is not None and blocking.op_concurrency_slot_buffer is not None:
        value = blocking.op_concurrency_slot_buffer
        if faults := list(bounded(value, source, *old_place, "op_concurrency_slot_buffer")):
            raise ConfigError(faults)
        found.put("pools", key, value, source.origin(*old_place, "op_concurrency_slot_buffer"))
    else:
        found.put("pools", key, 0, unset)
    if granularity == "run" and found.block["pools"][key]:
        found.notes.append(
            "pools.op_granularity_run_buffer: in run granularity Dagster adds it to the limits; here it does not."
        )


def _no_queue(settings: schema.Settings, source: Source, found: Found) -> None:
    coordinator = settings.run_coordinator
    assert coordinator is not None  # noqa: S101  # only a coordinator can have no queue
    origin = f"{source.origin('run_coordinator', 'class')}: {coordinator.class_} queues no run and caps none"
    found.put("runs", "max_concurrent_runs", -1, origin)
    runs = (settings.concurrency.runs if settings.concurrency else None) or schema.Runs()
    for name in sorted(runs.model_fields_set):
        message = (
            f"ignored by Dagster, since {coordinator.class_} has no queue; write it into the new file if it is to hold"
        )
        found.left_out.append(source.fault(message, "concurrency", "runs", name))
    if found.block["pools"]["granularity"] == "run":
        found.notes.append(f"{origin}; so Dagster enforces no pool of run granularity. Here they are enforced.")
