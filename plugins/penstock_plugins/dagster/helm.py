"""Helm values of Dagster's chart as the dagster.yaml that the chart makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import ConfigError, Fault
from penstock.yaml_lines import Lines, Location, path_of

from penstock_plugins.dagster.source import Source

POOLS = {
    "defaultLimit": "default_limit",
    "granularity": "granularity",
    "opGranularityRunBuffer": "op_granularity_run_buffer",
}
RUNS = {"maxConcurrentRuns": "max_concurrent_runs", "tagConcurrencyLimits": "tag_concurrency_limits"}
QUEUE = {
    **RUNS,
    "dequeueIntervalSeconds": "dequeue_interval_seconds",
    "dequeueUseThreads": "dequeue_use_threads",
    "dequeueNumWorkers": "dequeue_num_workers",
    "blockOpConcurrencyLimitedRuns": "block_op_concurrency_limited_runs",
}
BLOCKING = {"enabled": "enabled", "opConcurrencySlotBuffer": "op_concurrency_slot_buffer"}
MONITORING = {
    "enabled": "enabled",
    "startTimeoutSeconds": "start_timeout_seconds",
    "cancelTimeoutSeconds": "cancel_timeout_seconds",
    "maxResumeRunAttempts": "max_resume_run_attempts",
    "pollIntervalSeconds": "poll_interval_seconds",
    "freeSlotsAfterRunEndSeconds": "free_slots_after_run_end_seconds",
}
QUEUED, CUSTOM = "QueuedRunCoordinator", "CustomRunCoordinator"
# What no value says is `kindIs "invalid"` in the chart; of these also what is empty counts as not there.
DROPPED_WHEN_EMPTY = frozenset({"granularity", "tagConcurrencyLimits", "dequeueIntervalSeconds", "dequeueUseThreads"})


@dataclass(frozen=True, slots=True)
class Rendered:
    """The settings, and what is in the values but not in the dagster.yaml: (place in the values, why)."""

    source: Source
    ignored: tuple[tuple[str, str], ...]


def rendered(source: Source) -> Rendered:
    """The dagster.yaml of these values, as far as it limits. Raises ConfigError where the chart refuses them."""
    return _Rendering(source).done()


class _Rendering:
    def __init__(self, source: Source) -> None:
        self._values, self._lines = source.document, source.lines
        self._root: Location = ()
        if "dagster" in source.document and "dagsterDaemon" not in source.document:
            self._values, self._root = source.document["dagster"], ("dagster",)  # Dagster's chart within another one
        self._source = source
        self._document: dict[str, Any] = {}
        self._new = Lines()
        self._paths: dict[Location, str] = {}
        self._faults: list[Fault] = []
        self._ignored: list[tuple[str, str]] = []

    def done(self) -> Rendered:
        self._concurrency()
        self._daemon()
        self._additional()
        if self._faults:
            raise ConfigError(self._faults)
        source = replace(self._source, document=self._document, lines=self._new, paths=self._paths)
        return Rendered(source, tuple(self._ignored))

    def _concurrency(self) -> None:
        block = self._block("concurrency")
        if not block:
            return
        if block.get("enabled", False) is not True:
            self._ignore(("concurrency",), "the chart renders nothing of it while concurrency.enabled is not true")
            return
        self._unknown(("concurrency",), {"enabled", "pools", "runs"})
        concurrency: dict[str, Any] = {}
        self._put(("concurrency",), concurrency, ("concurrency",))
        for part, names in (("pools", POOLS), ("runs", RUNS)):
            taken = self._taken(("concurrency", part), names, ("concurrency", part))
            if taken:
                concurrency[part] = taken

    def _daemon(self) -> None:
        daemon = self._block("dagsterDaemon")
        if daemon.get("enabled", True) is not True:
            self._ignore(("dagsterDaemon",), "without the daemon no queued run is ever started")
            return
        monitoring = self._block("dagsterDaemon", "runMonitoring")
        if monitoring.get("enabled") is True:
            here: Location = ("dagsterDaemon", "runMonitoring")
            self._document["run_monitoring"] = self._taken(here, MONITORING, ("run_monitoring",), strict=False)
        coordinator = self._block("dagsterDaemon", "runCoordinator")
        if coordinator.get("enabled", True) is not True:
            if coordinator.get("config"):
                self._ignore(("dagsterDaemon", "runCoordinator", "config"), "runCoordinator.enabled is not true")
            return
        kind = coordinator.get("type", QUEUED)
        config: Location = ("dagsterDaemon", "runCoordinator", "config")
        if kind == QUEUED:
            self._queue((*config, "queuedRunCoordinator"))
        elif kind == CUSTOM:
            place = (*config, "customRunCoordinator")
            self._put(("run_coordinator",), self._block(*place), place)
        else:
            self._fault(f"{kind!r} found; {QUEUED} or {CUSTOM} is expected", (*config[:2], "type"))

    def _queue(self, place: Location) -> None:
        values, new = self._block(*place), ("run_coordinator", "config")
        self._contradictions(place)
        queue = self._taken(place, QUEUE, new)
        self._put(("run_coordinator",), {"module": "dagster", "class": QUEUED}, place)
        if not queue:
            return
        blocking = values.get("blockOpConcurrencyLimitedRuns")
        if isinstance(blocking, dict):
            here, there = (*place, "blockOpConcurrencyLimitedRuns"), (*new, "block_op_concurrency_limited_runs")
            queue["block_op_concurrency_limited_runs"] = self._taken(here, BLOCKING, there)
        if "max_concurrent_runs" not in queue and "concurrency" not in self._document:
            # The chart's own default, as soon as any other key of the queue is set.
            queue = {"max_concurrent_runs": -1, **queue}
            self._where((*new, "max_concurrent_runs"), place, " (not set: the chart writes -1 beside other keys)")
        self._document["run_coordinator"]["config"] = queue

    def _contradictions(self, place: Location) -> None:
        block, queue = self._document.get("concurrency", {}), self._block(*place)
        blocking = queue.get("blockOpConcurrencyLimitedRuns")
        for part, new, name, given in (
            ("runs", "max_concurrent_runs", "maxConcurrentRuns", queue.get("maxConcurrentRuns") is not None),
            ("runs", "tag_concurrency_limits", "tagConcurrencyLimits", bool(queue.get("tagConcurrencyLimits"))),
            (
                "pools",
                "op_granularity_run_buffer",
                "blockOpConcurrencyLimitedRuns",
                isinstance(blocking, dict) and blocking.get("opConcurrencySlotBuffer") is not None,
            ),
        ):
            if given and new in block.get(part, {}):
                other = self._source_path(("concurrency", part))
                self._fault(f"the chart refuses it beside the same setting in {other}; keep that one", (*place, name))

    def _additional(self) -> None:
        """What the chart appends to the dagster.yaml as it stands."""
        for key, value in self._block("additionalInstanceConfig").items():
            place: Location = ("additionalInstanceConfig", key)
            if key in self._document:
                self._fault(f"the chart's own dagster.yaml has {key}, too, and of two Dagster takes the last", place)
                continue
            self._document[key] = value
            self._copy_lines(value, (key,), place)

    # -- reading the values ----------------------------------------------------------------------------------------

    def _block(self, *place: str | int) -> dict[str, Any]:
        part: Any = self._values
        for name in place:
            part = part.get(name) if isinstance(part, dict) else None
        if part is None:
            return {}
        if not isinstance(part, dict):
            self._fault("a block of keys is expected", place)
            return {}
        return part

    def _taken(
        self, place: Location, names: Mapping[str, str], new: Location, *, strict: bool = True
    ) -> dict[str, Any]:
        """The keys of a block under Dagster's names. What is null is not there."""
        block = self._block(*place)
        if strict:
            self._unknown(place, names.keys())
        taken = {}
        self._where(new, place)
        for name, value in block.items():
            if name in names and value is not None and not (name in DROPPED_WHEN_EMPTY and not value):
                if name == "tagConcurrencyLimits" and isinstance(value, list) and place[0] == "concurrency":
                    # `{{- if .value }}`: the chart leaves an empty value out.
                    value = [_without_empty_value(rule) for rule in value]  # noqa: PLW2901
                taken[names[name]] = value
                self._copy_lines(value, (*new, names[name]), (*place, name))
        return taken

    def _unknown(self, place: Location, known: Any) -> None:
        for name in self._block(*place):
            if name not in known:
                self._fault(f"no such key of the chart; known are: {', '.join(sorted(known))}", (*place, name))

    def _put(self, new: Location, value: Any, place: Location) -> None:
        self._document[str(new[0])] = value
        self._copy_lines(value, new, place)

    def _copy_lines(self, value: Any, new: Location, place: Location) -> None:
        self._where(new, place)
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in parts:
            self._copy_lines(part, (*new, key), (*place, key))

    def _where(self, new: Location, place: Location, remark: str = "") -> None:
        self._new.put(new, self._lines.of((*self._root, *place)))
        self._paths[new] = self._source_path(place) + remark

    def _source_path(self, place: Location) -> str:
        return path_of((*self._root, *place))

    def _fault(self, message: str, place: Location) -> None:
        self._faults.append(Fault(message, self._lines.of((*self._root, *place)), self._source_path(place)))

    def _ignore(self, place: Location, why: str) -> None:
        line = self._lines.of((*self._root, *place))
        self._ignored.append((f"line {line}: {self._source_path(place)}", why))


def _without_empty_value(rule: Any) -> Any:
    if isinstance(rule, dict) and not rule.get("value", True):
        return {key: part for key, part in rule.items() if key != "value"}
    return rule
