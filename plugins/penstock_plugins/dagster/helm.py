"""Helm values of Dagster's chart as the dagster.yaml that the chart makes of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import ConfigError, Fault
from penstock.yaml_lines import Lines, Location, path_of
from pydantic import BaseModel

from penstock_plugins.dagster import schema
from penstock_plugins.dagster.source import READ_OF_HELM, Source


def _chart_names(model: type[BaseModel], *but: str) -> Mapping[str, str]:
    """The chart's name of each of Dagster's keys → that key; `but` are keys that the chart renders nothing for."""
    return {
        "".join(part if not index else part.title() for index, part in enumerate(key.split("_"))): key
        for key in model.model_fields
        if key not in but
    }


PARTS = {"pools": _chart_names(schema.Pools), "runs": _chart_names(schema.Runs)}
QUEUE = _chart_names(schema.Queue, "max_user_code_failure_retries", "user_code_failure_retry_delay")
BLOCKING = _chart_names(schema.Blocking)
MONITORING = _chart_names(schema.RunMonitoring, "max_runtime_seconds", "cancellation_thread_poll_interval_seconds")
QUEUED, CUSTOM = "QueuedRunCoordinator", "CustomRunCoordinator"
QUEUE_BY_DEFAULT: Mapping[str, Any] = {"dequeueUseThreads": True, "dequeueNumWorkers": 4}
"""The chart's own values: it renders a queue's config as soon as one value is neither null nor empty, so it does."""
# What no value says is `kindIs "invalid"` in the chart; of these also what is empty counts as not there.
DROPPED_WHEN_EMPTY = frozenset(
    {
        "blockOpConcurrencyLimitedRuns",
        "dequeueIntervalSeconds",
        "dequeueNumWorkers",
        "dequeueUseThreads",
        "granularity",
        "tagConcurrencyLimits",
    }
)
NOT_OF_RUNS = frozenset(
    {
        "affinity",
        "annotations",
        "backfills",
        "checkDbReadyInitContainer",
        "deploymentLabels",
        "enabled",
        "env",
        "envConfigMaps",
        "envSecrets",
        "extraContainers",
        "extraPrependedInitContainers",
        "heartbeatTolerance",
        "image",
        "initContainerResources",
        "labels",
        "livenessProbe",
        "nodeSelector",
        "podSecurityContext",
        "readinessProbe",
        "resources",
        "runCoordinator",
        "runMonitoring",
        "runRetries",
        "schedulerName",
        "schedules",
        "securityContext",
        "sensors",
        "startupProbe",
        "terminationGracePeriodSeconds",
        "tolerations",
        "volumeMounts",
        "volumes",
    }
)
"""The keys of `dagsterDaemon`: of any other nobody can say here whether it bounds runs."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The settings, and what is in the values but not in the dagster.yaml: (place in the values, why).

    `unknown`: keys of which nobody can say here what they do.
    """

    source: Source
    ignored: tuple[tuple[str, str], ...]
    unknown: tuple[Fault, ...]


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
        self._unknowns: list[Fault] = []
        self._unlimited_by_chart = False

    def done(self) -> Rendered:
        self._misspelt()
        self._concurrency()
        self._daemon()
        self._additional()
        if self._faults:
            raise ConfigError(self._faults)
        source = replace(self._source, document=self._document, lines=self._new, paths=self._paths)
        return Rendered(source, tuple(self._ignored), tuple(self._unknowns))

    def _misspelt(self) -> None:
        """The chart takes any key at its top, and a parent's has others: those that look like one that is read."""
        for key in self._block():
            nearest = difflib.get_close_matches(key, sorted(READ_OF_HELM | {"concurrency"}), n=1, cutoff=0.8)
            if nearest and nearest[0] != key:
                self._fault(f"the chart renders nothing of it; did you mean `{nearest[0]}`?", (key,))

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
        for part, names in PARTS.items():
            taken = self._taken(("concurrency", part), names, ("concurrency", part))
            if taken:
                concurrency[part] = taken

    def _daemon(self) -> None:
        daemon = self._block("dagsterDaemon")
        if daemon.get("enabled", True) is not True:
            self._ignore(("dagsterDaemon",), "without the daemon no queued run is ever started")
            return
        for name in daemon.keys() - NOT_OF_RUNS:
            here: Location = ("dagsterDaemon", name)
            message = "no key of the chart that is known here; see whether it bounds runs, and write that by hand"
            self._unknowns.append(Fault(message, self._line(here), self._source_path(here)))
        self._monitoring()
        for name, key, switch in (
            ("runRetries", "run_retries", "enabled"),
            ("sensors", "sensors", "useThreads"),
            ("schedules", "schedules", "useThreads"),
        ):
            if (values := self._block("dagsterDaemon", name)).get(switch) is True:
                self._put((key,), values, ("dagsterDaemon", name))
        coordinator = self._block("dagsterDaemon", "runCoordinator")
        self._unknown(("dagsterDaemon", "runCoordinator"), {"enabled", "type", "config"})
        self._unknown(("dagsterDaemon", "runCoordinator", "config"), {"queuedRunCoordinator", "customRunCoordinator"})
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

    def _monitoring(self) -> None:
        here: Location = ("dagsterDaemon", "runMonitoring")
        block = self._block(*here)
        if block.get("enabled") is True:
            self._document["run_monitoring"] = self._taken(here, MONITORING, ("run_monitoring",), strict=False)
            for name in block.keys() - MONITORING.keys():
                self._ignore((*here, name), "the chart renders nothing of it")

    def _queue(self, place: Location) -> None:
        values, new = self._block(*place), ("run_coordinator", "config")
        self._contradictions(place)
        queue = self._taken(place, QUEUE, new)
        self._put(("run_coordinator",), {"module": "dagster", "class": QUEUED}, place)
        if not any({**QUEUE_BY_DEFAULT, **values}.values()):
            for name in queue:
                self._ignore(place, f"the chart renders no {name}, since all values here are 0, false, empty or null")
            return
        for name in ("maxConcurrentRuns", "dequeueIntervalSeconds", "dequeueNumWorkers"):
            if isinstance(values.get(name), dict):
                self._fault(
                    "the chart renders a block as text, which Dagster refuses; write the number", (*place, name)
                )
        blocking = values.get("blockOpConcurrencyLimitedRuns")
        if blocking and isinstance(blocking, dict):
            here, there = (*place, "blockOpConcurrencyLimitedRuns"), (*new, "block_op_concurrency_limited_runs")
            queue["block_op_concurrency_limited_runs"] = self._taken(here, BLOCKING, there)
            for name in BLOCKING.keys() - {name for name, value in blocking.items() if value is not None}:
                self._fault(f"{name} is missing, which the chart then renders as null, and Dagster refuses that", here)
        if "max_concurrent_runs" not in queue and "concurrency" not in self._document:
            queue = {"max_concurrent_runs": -1, **queue}
            self._unlimited_by_chart = True
            self._where((*new, "max_concurrent_runs"), place, " (not set: the chart writes -1)")
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
            if (
                key == "concurrency"
                and self._unlimited_by_chart
                and isinstance(value, dict)
                and value.keys() & {*PARTS}
            ):
                message = (
                    "Dagster refuses it beside the max_concurrent_runs -1 that the chart itself writes; "
                    "write it as `concurrency` of the values, enabled"
                )
                self._fault(message, place)
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
        self._new.put(new, self._line(place))
        self._paths[new] = self._source_path(place) + remark

    def _line(self, place: Location) -> int | None:
        return self._lines.of((*self._root, *place))

    def _source_path(self, place: Location) -> str:
        return path_of((*self._root, *place))

    def _fault(self, message: str, place: Location) -> None:
        self._faults.append(Fault(message, self._line(place), self._source_path(place)))

    def _ignore(self, place: Location, why: str) -> None:
        self._ignored.append((f"line {self._line(place)}: {self._source_path(place)}", why))


def _without_empty_value(rule: Any) -> Any:
    if isinstance(rule, dict) and not rule.get("value", True):
        return {key: part for key, part in rule.items() if key != "value"}
    return rule
