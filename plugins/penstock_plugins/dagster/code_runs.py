"""Jobs, schedules and code locations: executors, run tags and run configuration."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import Any

from penstock_plugins.dagster.code_executors import (
    Executor,
    execution_of,
    executor_of,
    run_config_of,
    standard,
    unread,
    with_execution,
)
from penstock_plugins.dagster.code_report import Finding, FindingKind, Runs
from penstock_plugins.dagster.code_scopes import Bound, NotStatic, Scope
from penstock_plugins.dagster.code_sites import Given, Site, given
from penstock_plugins.dagster.code_tags import CONCURRENCY_KEY, tags_of
from penstock_plugins.dagster.code_values import named

JOBS = {"job": "job", "define_asset_job": "asset job", ".to_job": "job", "JobDefinition": "job"}
LOCATIONS = {"Definitions": "executor", "repository": "default_executor_def"}
_TICKS = {"schedule": "schedule", "ScheduleDefinition": "schedule", "RunRequest": "run request"}


@dataclass(frozen=True, slots=True)
class _Location:
    """A `Definitions` or `@repository`: its executor, and the jobs that it names."""

    site: Site
    executor: Executor
    jobs: frozenset[int] | None  # None: not said here, or it cannot be read


class AllRuns:
    """Reads what bounds runs and how they are tagged; jobs without an executor take their code location's."""

    def __init__(self) -> None:
        self.rows: list[Runs] = []
        self.findings: list[Finding] = []
        self._jobs: list[Site] = []
        self._ticks: list[Site] = []
        self._locations: list[_Location] = []
        self._runs_of_job: dict[int, Executor] = {}

    def add(self, site: Site) -> None:
        """Take up one use of a name of Dagster's; those that concern no runs are passed over."""
        name = site.given.name
        if name in JOBS:
            self._jobs.append(site)
        elif name in LOCATIONS:
            self._location(site)
        elif name in _TICKS:
            self._ticks.append(site)
        elif name == "sensor" and site.given.has("tags"):
            self._find(
                "ignored", site, "`tags=` of a sensor", "they tag the sensor, not its runs: RunRequest takes those"
            )

    def finish(self) -> None:
        """Read jobs, and then what starts them."""
        for site in self._jobs:
            self._job(site)
        for site in self._ticks:
            self._tick(site)

    @property
    def of_all(self) -> Runs | None:
        """What bounds the runs of all code locations, where they have one and the same executor; None: there are none,
        they differ, or it cannot be read."""
        executors = {_key(each.executor): each for each in self._locations}
        if len(executors) != 1 or any(each.site.unsure for each in self._locations):
            return None
        ((first),) = executors.values()
        return None if first.executor.bound == "unread" else _runs("code location", first.site, first.executor)

    # -- code locations ------------------------------------------------------------------------------------------------

    def _location(self, site: Site) -> None:
        call = site.given
        expression = call.expression(LOCATIONS[call.name], 5 if call.name == "Definitions" else None)
        executor = executor_of(*expression) if expression else unread(call.spread) if call.spread else standard()
        jobs: frozenset[int] | None = None
        if listed := call.expression("jobs", 3):
            node, scope = listed
            try:
                found = named(node, scope)
            except NotStatic:
                found = None
            if isinstance(found, Bound) and isinstance(found.node, ast.List | ast.Tuple):
                nodes = [_node_of(item, found.scope) for item in found.node.elts]
                jobs = frozenset(map(id, nodes)) if None not in nodes else None
        self._locations.append(_Location(site, executor, jobs))
        said = expression is not None or call.spread is not None
        if said and site.unsure is not None:
            self._find("unread", site, f"the executor of {call.name}", site.unsure)
        elif said:
            self._row("code location", call.name, site, executor, {}, [])

    def _inherited(self, job: Site) -> Executor:
        naming = [each for each in self._locations if each.jobs and id(job.node) in each.jobs]
        fitting = naming or [each for each in self._locations if each.jobs is None]
        executors = {_key(each.executor): each.executor for each in fitting}
        if len(executors) > 1:
            return unread("several Definitions have different executors, and which has this job cannot be read")
        executor = next(iter(executors.values()), standard())
        of_all = len({_key(each.executor) for each in self._locations}) == 1 and executor.bound == "set"
        return replace(executor, inherited=of_all)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _job(self, site: Site) -> None:
        call, kind = site.given, JOBS[site.given.name]
        missing: list[str] = []
        name = self._read(site, "name", missing, lambda: _job_name(site))
        label = f"{kind} {name or '?'}"
        own = call.expression("executor_def")
        executor = executor_of(*own) if own else unread(call.spread) if call.spread else self._inherited(site)
        config = call.expression("config", 2 if call.name == "define_asset_job" else None)
        executor = self._under(site, label, executor, config, missing)
        self._runs_of_job[id(site.node)] = executor
        run_tags = self._tags(site, label, "run_tags" if call.has("run_tags") else "tags", missing)
        if call.has("run_tags") and call.has("tags"):
            self._find("ignored", site, f"`tags=` of {label}", "its runs have those of `run_tags=` alone")
        if call.name == ".to_job":
            run_tags = self._graph_tags(call) | run_tags
        if site.unsure is not None or not name:
            reason = site.unsure or "its name is worked out when the code runs"
            self._find("unread", site, label, reason)
            return
        self._row(kind, name, site, executor, run_tags, missing)

    def _under(
        self, site: Site, label: str, executor: Executor, config: tuple[ast.expr, Scope] | None, missing: list[str]
    ) -> Executor:
        if config is None:
            return executor
        try:
            execution = execution_of(run_config_of(*config))
            if execution and executor.configured:
                reason = "its executor is configured already, and Dagster passes over this"
                self._find("ignored", site, f"`execution` in the run configuration of {label}", reason)
                return executor
            return with_execution(executor, execution)
        except NotStatic as error:
            missing.append("run configuration")
            self._find("unread", site, f"the run configuration of {label}", error.why)
            return Executor(executor.name, "unread")

    def _graph_tags(self, call: Given) -> dict[str, str]:
        if call.of is None:
            return {}
        node = _node_of(call.of, call.scope)
        for decorator in getattr(node, "decorator_list", ()):
            found = given(decorator, call.scope)
            if found is not None and found.name == "graph":
                try:
                    return tags_of(found.value("tags")).known
                except NotStatic:
                    return {}
        return {}

    # -- schedules, sensors and run requests ---------------------------------------------------------------------------

    def _tick(self, site: Site) -> None:
        call, kind = site.given, _TICKS[site.given.name]
        config = call.expression("run_config", 1 if call.name == "RunRequest" else None)
        if not (call.has("tags", "tags_fn") or config or call.spread):
            return
        missing: list[str] = []
        name = self._read(site, "name", missing, lambda: _tick_name(site)) or "?"
        label = f"{kind} {name}"
        if call.has("tags_fn"):
            self._find("unread", site, f"`tags_fn=` of {label}", "its tags are worked out when the code runs")
        if call.name == "schedule" and call.has("tags") and _makes_requests(site):
            self._find("ignored", site, f"`tags=` of {label}", "a RunRequest has only its own: these tag the schedule")
            return
        if site.unsure is not None and call.name != "RunRequest":
            self._find("unread", site, label, site.unsure)
            return
        executor = self._runs_of_job.get(id(self._job_of(call)), standard())
        executor = self._under(site, label, executor, config, missing)
        run_tags = self._tags(site, label, "tags", missing)
        if not run_tags and config is None and not missing:
            return
        self._row(kind, name, site, executor, run_tags, missing)

    def _job_of(self, call: Given) -> ast.AST | None:
        for argument in ("job", "target"):
            if expression := call.expression(argument):
                return _node_of(*expression)
        return None

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, site: Site, what: str, missing: list[str], how: Any) -> Any:
        try:
            return how()
        except NotStatic as error:
            missing.append(what)
            if site.unsure is None:
                self._find("unread", site, f"{what} of {site.given.name.lstrip('.')}", error.why)
            return None

    def _tags(self, site: Site, label: str, argument: str, missing: list[str]) -> dict[str, str]:
        try:
            tags = tags_of(site.given.value(argument))
        except NotStatic as error:
            missing.append("run tags")
            self._find("unread", site, f"the run tags of {label}", error.why)
            return {}
        for key, why in tags.unknown.items():
            missing.append(f"run tag {key}")
            self._find("unread", site, f"the run tag {key} of {label}", why)
        if CONCURRENCY_KEY in tags.known or CONCURRENCY_KEY in tags.unknown:
            self._find("ignored", site, f"`{CONCURRENCY_KEY}` among the tags of {label}", "it counts on ops alone")
        return tags.known

    def _row(
        self, kind: str, name: str, site: Site, executor: Executor, tags: dict[str, str], missing: list[str]
    ) -> None:
        if executor.why is not None:
            missing = [*missing, "executor"]
            self._find("unread", site, f"the executor of {kind} {name}", executor.why)
        for rule in executor.overwritten:
            self._find(
                "ignored", site, f"the rule {rule}", "a later one has the same key and value; Dagster takes the last"
            )
        self.rows.append(replace(_runs(kind, site, executor), name=name, run_tags=tags, unread=tuple(missing)))

    def _find(self, kind: FindingKind, site: Site, subject: str, reason: str) -> None:
        self.findings.append(Finding(kind, site.given.file, site.line, subject, reason))


def _runs(kind: str, site: Site, executor: Executor) -> Runs:
    return Runs(
        kind=kind,
        name=site.given.name,
        file=site.given.file,
        line=site.line,
        executor=executor.name,
        bound=executor.bound,
        max_concurrent=executor.max_concurrent,
        tag_concurrency_limits=executor.tag_concurrency_limits,
        inherited=executor.inherited,
    )


def _key(executor: Executor) -> tuple[object, ...]:
    return (executor.name, executor.bound, executor.max_concurrent, repr(executor.tag_concurrency_limits), executor.why)


def _node_of(node: ast.expr, scope: Scope) -> ast.AST | None:
    try:
        found = named(node, scope)
    except NotStatic:
        return None
    return found.node if isinstance(found, Bound) else None


def _job_name(site: Site) -> str:
    call = site.given
    name = call.value("name", 0 if call.name in ("define_asset_job", ".to_job") else None)
    if name is None and site.decorated is not None:
        return site.decorated.name
    if name is None and call.name == ".to_job" and call.of is not None:
        node = _node_of(call.of, call.scope)
        if isinstance(node, ast.FunctionDef):
            return node.name
    if not isinstance(name, str):
        raise NotStatic("it is no text")
    return name


def _tick_name(site: Site) -> str:
    call = site.given
    if call.name == "RunRequest":
        return f"line {site.line}"
    name = call.value("name", 0 if call.name == "ScheduleDefinition" else None)
    if name is None and site.decorated is not None:
        return site.decorated.name
    if isinstance(name, str):
        return name
    for argument in ("job_name", "job", "target"):
        if expression := call.expression(argument):
            node = _node_of(*expression)
            if isinstance(node, ast.FunctionDef):
                return f"{node.name}_schedule"
            if isinstance(node, ast.Call) and (job := given(node, call.scope)) and (own := job.value("name", 0)):
                return f"{own}_schedule"
            if argument == "job_name" and isinstance(own := call.value(argument), str):
                return f"{own}_schedule"
    raise NotStatic("it is worked out when the code runs")


def _makes_requests(site: Site) -> bool:
    for node in ast.walk(site.node):
        if isinstance(node, ast.Call) and (found := given(node, site.scope)) and found.name == "RunRequest":
            return True
    return False
