"""Executors and run configuration: how many ops of one run execute at once, with Dagster's defaults."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from penstock_plugins.dagster.code_report import Unknown, rule_text
from penstock_plugins.dagster.code_scopes import Bound, Imported, NotStatic, Scope
from penstock_plugins.dagster.code_sites import Given, given
from penstock_plugins.dagster.code_values import dagster_name, evaluate, known, named

Bounded = Literal["set", "cpu_count", "unlimited", "unread"]
DEFAULT = "multi_or_in_process_executor"
# What each bounds a run by where its configuration says nothing.
_BY_ITSELF: dict[str, tuple[Bounded, int | None]] = {
    DEFAULT: ("cpu_count", None),
    "multiprocess_executor": ("cpu_count", None),
    "in_process_executor": ("set", 1),
    "k8s_job_executor": ("unlimited", None),
    "docker_executor": ("unlimited", None),
    "ecs_executor": ("unlimited", None),
    "celery_executor": ("unlimited", None),
    "celery_k8s_job_executor": ("unlimited", None),
    "celery_docker_executor": ("unlimited", None),
    "dask_executor": ("unlimited", None),
}


@dataclass(frozen=True, slots=True)
class Executor:
    """An executor with what bounds the ops of a run; `why` it cannot be read.

    One that was `configured` takes no more: Dagster passes over what a run's configuration says to it.
    """

    name: str
    bound: Bounded
    max_concurrent: int | None = None
    tag_concurrency_limits: tuple[Mapping[str, Any], ...] = ()
    overwritten: tuple[str, ...] = ()
    configured: bool = False
    inherited: bool = False
    why: str | None = None


def standard(name: str = DEFAULT) -> Executor:
    """An executor as it is without configuration."""
    bound, max_concurrent = _BY_ITSELF[name]
    return Executor(name, bound, max_concurrent)


def unread(why: str) -> Executor:
    return Executor("?", "unread", why=why)


def executor_of(node: ast.expr, scope: Scope) -> Executor:
    """The executor that an expression stands for."""
    try:
        name = dagster_name(node, scope)
        if name in _BY_ITSELF:
            return standard(name)
        found = named(node, scope)
        if isinstance(found, Imported):
            return unread(f"`{found.dotted}` is an executor of its own")
        if not isinstance(found.node, ast.expr):
            return unread(
                f"`{found.node.name}` is an executor of the project's own, or is configured when the code runs"
            )
        call = given(found.node, found.scope)
        if call is not None and call.name == ".configured" and call.of is not None:
            return _configured(executor_of(call.of, found.scope), call, found.scope)
    except NotStatic as error:
        return unread(error.why)
    return unread("it is made when the code runs")


def _configured(executor: Executor, call: Given, scope: Scope) -> Executor:
    if executor.bound == "unread":
        return executor
    expression = call.expression("config_or_config_fn", 0)
    if expression is None:
        return unread("it is configured when the code runs")
    config = evaluate(*expression)
    chosen = _selected(executor, config) if executor.name == DEFAULT else with_config(executor, config)
    return replace(chosen, configured=True)


def execution_of(config: Any) -> Any:
    """A run configuration's block for the executor. Raises NotStatic where that cannot be read."""
    return _block(_block(config, "execution"), "config")


def with_execution(executor: Executor, execution: Any) -> Executor:
    """The executor under a run's block for it. Raises NotStatic where that cannot be read."""
    if not execution or executor.bound == "unread":
        return executor
    executor = replace(executor, inherited=False)
    return _selected(executor, execution) if executor.name == DEFAULT else with_config(executor, execution)


def _selected(executor: Executor, config: Any) -> Executor:
    """Dagster's default executor is one of two, by the key of its configuration."""
    if "in_process" in config:
        return standard("in_process_executor")
    return with_config(executor, _block(config, "multiprocess"))


def with_config(executor: Executor, config: Any) -> Executor:
    """The executor with its own configuration, above what it had. Raises NotStatic where that cannot be read."""
    if not isinstance(config, dict):
        raise NotStatic("its configuration is no dict")
    if "multiprocess" in config or "in_process" in config:
        raise NotStatic("Dagster refuses it: only its default executor takes `multiprocess` or `in_process`")
    if "max_concurrent" in config:
        most = known(config["max_concurrent"])
        if most:  # None and 0 are Dagster's default
            if type(most) is not int:
                raise NotStatic(f"max_concurrent {most!r} is no number")
            executor = replace(executor, bound="set", max_concurrent=most)
    if "tag_concurrency_limits" in config:
        rules, overwritten = _rules(known(config["tag_concurrency_limits"]))
        executor = replace(executor, tag_concurrency_limits=rules, overwritten=overwritten)
    return executor


def _rules(rules: Any) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """The rules that count, and those that a later one of the same key and value overwrites."""
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise NotStatic("tag_concurrency_limits are no list of dicts")
    counting: dict[str, Mapping[str, Any]] = {}
    overwritten = []
    for rule in rules:
        if not isinstance(rule.get("key"), str) or type(rule.get("limit")) is not int:
            raise NotStatic("a tag concurrency limit lacks its key or limit")
        shown = rule_text({**rule, "limit": ""})
        if shown in counting:
            overwritten.append(rule_text(counting[shown]))
        counting[shown] = rule
    return tuple(counting.values()), tuple(overwritten)


def reaches(rule: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    """Whether an op with these tags counts under the rule."""
    value = rule.get("value")
    return rule["key"] in tags and (not isinstance(value, str) or tags[rule["key"]] == value)


def run_config_of(node: ast.expr, scope: Scope) -> Any:
    """The run configuration that an expression stands for, as a dict. Raises NotStatic."""
    found = named(node, scope)
    if isinstance(found, Bound) and isinstance(found.node, ast.expr):
        call = given(found.node, found.scope)
        if call is not None and call.name == "RunConfig":
            execution = call.expression("execution", 3)
            if execution is None and call.spread is not None:
                raise NotStatic(call.spread)
            return {"execution": evaluate(*execution)} if execution else {}
        return evaluate(found.node, found.scope)
    raise NotStatic("it is worked out when the code runs")


def _block(config: Any, key: str) -> Any:
    inner = config.get(key) if isinstance(config, dict) else None
    if isinstance(inner, Unknown):
        raise NotStatic(inner.why)
    return inner if isinstance(inner, dict) else {}
