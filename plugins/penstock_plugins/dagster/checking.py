"""Whether Dagster's settings are right: types, ranges and contradictions as Dagster has them, every fault together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from penstock.claim import CAPACITY_MAX
from penstock.config_file import expected, shown
from penstock.errors import ConfigError, Fault
from penstock.yaml_lines import Location
from pydantic import BaseModel, ValidationError

from penstock_plugins.dagster import schema
from penstock_plugins.dagster.source import Form, Source

QUEUED = "QueuedRunCoordinator"
PLUS_MOST_RUNS = 500
NULL_IS_ABSENT: tuple[Location, ...] = (
    ("concurrency",),
    ("concurrency", "pools"),
    ("concurrency", "runs"),
    ("run_queue",),
    ("run_monitoring",),
)
"""Blocks with nothing below them: Dagster refuses them, partly by a crash of its parser; here they are absent."""


def parsed(source: Source, environ: Mapping[str, str]) -> schema.Settings:
    """The settings, checked as Dagster checks them. Raises ConfigError with every fault."""
    document: dict[str, Any] = {
        key: source.document[key] for key in schema.Settings.model_fields if key in source.document
    }
    for location in NULL_IS_ABSENT:
        _drop_null(document, location)
    faults = [*_contradictions(document, source)]
    try:
        settings = schema.Settings.model_validate(document)
    except ValidationError as error:
        faults += [fault_of(each, source) for each in error.errors(include_url=False)]
        raise ConfigError(_sorted(source, faults)) from None
    faults += _out_of_range(settings, source, environ)
    if source.faults or faults:
        raise ConfigError(_sorted(source, faults))
    return settings


def _sorted(source: Source, faults: Iterable[Fault]) -> list[Fault]:
    return sorted((*source.faults, *faults), key=lambda fault: fault.line or 0)


def _drop_null(document: dict[str, Any], location: Location) -> None:
    block: Any = document
    for name in location[:-1]:
        block = block.get(name) if isinstance(block, dict) else None
    if isinstance(block, dict) and location[-1] in block and block[str(location[-1])] is None:
        parent = dict(block)
        del parent[str(location[-1])]
        if len(location) == 1:
            document.pop(str(location[0]))
        else:
            document[str(location[0])] = parent


def _contradictions(document: Mapping[str, Any], source: Source) -> Iterator[Fault]:
    """What Dagster refuses to have at once, with its reason."""
    block = document.get("concurrency")
    block = block if isinstance(block, dict) else {}
    if "run_queue" in document and "run_coordinator" in document:
        yield source.fault("Dagster refuses it beside run_coordinator; keep one of them", "run_queue")
    if "pools" in block and block.get("default_op_concurrency_limit") is not None:
        message = "Dagster refuses it beside `pools`; write pools.default_limit instead"
        yield source.fault(message, "concurrency", "default_op_concurrency_limit")
    if not {"runs", "pools"} & block.keys():
        return
    coordinator = document.get("run_coordinator")
    places: list[Location] = [("run_queue",)]
    if isinstance(coordinator, dict) and coordinator.get("class") == QUEUED:
        places.append(("run_coordinator", "config"))
    for place in places:
        for path in (
            ("max_concurrent_runs",),
            ("tag_concurrency_limits",),
            ("block_op_concurrency_limited_runs", "op_concurrency_slot_buffer"),
        ):
            if _plucked(document, (*place, *path)) is not None:
                message = "Dagster refuses it beside concurrency.runs or concurrency.pools; move it there"
                yield source.fault(message, *place, *path)


def _plucked(document: Any, location: Location) -> Any:
    for name in location:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def fault_of(error: Any, source: Source) -> Fault:
    """An error of pydantic's at its place in the source."""
    location: Location = tuple("class" if part == "class_" else part for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            message = f"no such key; Dagster knows: {', '.join(_known(location))}"
        case "missing":
            message = "is missing"
        case "value_error":
            message = str(error["ctx"]["error"])
        case "literal_error":
            message = f"{shown(error['input'])} found; 'op' or 'run' is expected"
        case "bool_type":
            message = f"{shown(error['input'])} found; true or false is expected"
        case "int_type" if isinstance(error["input"], dict) and error["input"].keys() == {"env"}:
            message = "Dagster reads {env: …} only in run_queue and run_coordinator; write the number"
        case "string_type":
            message = f"{shown(error['input'])} found; text is expected"
        case _:
            message = f"{shown(error['input'])} found; {expected({**error, 'loc': ()})}"
    return source.fault(message, *location)


def _known(location: Location) -> list[str]:
    """The keys of the block around a place."""
    model: type[BaseModel] = schema.Settings
    for name in location[:-1]:
        annotation = schema.TagRule if isinstance(name, int) else model.model_fields.get(str(name))
        if isinstance(annotation, type):
            model = annotation
        elif annotation is not None:
            model = next((m for m in _models(annotation.annotation)), model)
    return sorted(entry.alias or name for name, entry in model.model_fields.items())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in getattr(annotation, "__args__", (annotation,)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part


def _out_of_range(settings: schema.Settings, source: Source, environ: Mapping[str, str]) -> Iterator[Fault]:
    block = settings.concurrency or schema.Concurrency()
    try:
        most = int(environ.get(schema.MAX_POOL_LIMIT_VARIABLE, schema.MAX_POOL_LIMIT))
    except ValueError:
        yield Fault(f"{schema.MAX_POOL_LIMIT_VARIABLE} is no whole number")
        return
    pools, runs = block.pools or schema.Pools(), block.runs or schema.Runs()
    for value, *place in (
        (pools.default_limit, "concurrency", "pools", "default_limit"),
        (block.default_op_concurrency_limit, "concurrency", "default_op_concurrency_limit"),
    ):
        if value is not None and not 0 <= value <= most:
            yield source.fault(f"{value} found; Dagster expects 0 to {most}", *place)
    yield from bounded(pools.op_granularity_run_buffer, source, "concurrency", "pools", "op_granularity_run_buffer")
    yield from rules_in_range(runs.tag_concurrency_limits, source, "concurrency", "runs", "tag_concurrency_limits")
    queue = settings.run_queue or schema.Queue()
    if source.form is Form.PLUS:
        for value, *place in (
            (runs.max_concurrent_runs, "concurrency", "runs", "max_concurrent_runs"),
            (queue.max_concurrent_runs, "run_queue", "max_concurrent_runs"),
        ):
            if isinstance(value, int) and not 0 <= value <= PLUS_MOST_RUNS:
                yield source.fault(f"{value} found; Dagster+ expects 0 to {PLUS_MOST_RUNS}", *place)
    elif (most_runs := runs.max_concurrent_runs) is not None:
        place = ["concurrency", "runs", "max_concurrent_runs"]
        if most_runs < -1:
            message = f"{most_runs} found; Dagster would start no run at all; write 0 for that, or -1 for no limit"
            yield source.fault(message, *place)
        elif most_runs > CAPACITY_MAX:
            yield source.fault(
                f"{most_runs} found; at most {CAPACITY_MAX} can be limited; write -1 for no limit", *place
            )


def bounded(value: int | None, source: Source, *place: str | int) -> Iterator[Fault]:
    """The fault of a limit that is out of range."""
    if value is not None and not 0 <= value <= CAPACITY_MAX:
        yield source.fault(f"{value} found; 0 to {CAPACITY_MAX} is expected (Dagster takes any number)", *place)


def rules_in_range(rules: schema.Rules, source: Source, *place: str | int) -> Iterator[Fault]:
    """The faults of rules that are of the right types."""
    first: dict[tuple[str, str | bool], int | None] = {}
    for index, rule in enumerate(rules or ()):
        here = (*place, index)
        yield from bounded(rule.limit, source, *here, "limit")
        if not rule.key:
            yield source.fault("a tag's key cannot be empty", *here, "key")
        tag = (rule.key, rule.value)
        if tag in first:
            message = f"a second rule for the same tag, the first on line {first[tag]}; Dagster silently takes the last"
            yield source.fault(message, *here)
        first.setdefault(tag, source.lines.of(here))
