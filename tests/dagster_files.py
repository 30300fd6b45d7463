"""Files of settings by chance, most of them broken somewhere, and what of a file we take otherwise than Dagster."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any


def generated(choice: random.Random) -> dict[str, Any]:
    """Some of the blocks, each with some of its keys, values mostly fit."""
    document: dict[str, Any] = {}
    if choice.random() < 0.6:
        document["concurrency"] = _some(
            choice, {"pools": _pools, "runs": _runs, "default_op_concurrency_limit": _number}
        )
    if choice.random() < 0.35:
        document["run_queue"] = _queue(choice)
    if choice.random() < 0.25:
        coordinator = {"module": "dagster", "class": "QueuedRunCoordinator"}
        document["run_coordinator"] = coordinator | ({"config": _queue(choice)} if choice.random() < 0.8 else {})
    if choice.random() < 0.04:
        document[choice.choice(["run_queues", "Concurrency", "ops"])] = {}
    return document


def _some(choice: random.Random, makers: dict[str, Callable[[random.Random], Any]]) -> Any:
    if choice.random() < 0.02:
        return choice.choice([None, 5, [], "text"])
    made = {name: make(choice) for name, make in makers.items() if choice.random() < 0.4}
    return made | ({"nonsense": 1} if choice.random() < 0.02 else {})


def _number(choice: random.Random) -> Any:
    if choice.random() < 0.06:
        return choice.choice(["3", 3.0, None, True, {"env": "RUNS"}, -1, -7, 20_000, [3]])
    return choice.choice([0, 1, 2, 5, 15, 400])


def _source(choice: random.Random) -> Any:
    if choice.random() < 0.2:
        return choice.choice([{"env": "RUNS"}, {"env": "WORDS"}, {"env": "NOWHERE"}, {"env": "NEGATIVE"}, -1])
    return _number(choice)


def _rule(choice: random.Random) -> dict[str, Any]:
    rule: dict[str, Any] = {"key": choice.choice(["team", "dagster/backfill", "db"]), "limit": _number(choice)}
    if choice.random() < 0.6:
        each = {"applyLimitPerUniqueValue": choice.random() < 0.7}
        rule["value"] = choice.choice(["a", "b", each, each] * 5 + [7, None, {"applyLimit": True}])
    if choice.random() < 0.03:
        del rule[choice.choice(sorted(rule))]
    return rule


def _list_of_rules(choice: random.Random) -> Any:
    if choice.random() < 0.05:
        return choice.choice([None, {}, 3])
    return [_rule(choice) for _ in range(choice.randrange(3))]


def _pools(choice: random.Random) -> Any:
    granularity = lambda choice: choice.choice(["op", "run"] * 9 + ["RUN", None])  # noqa: E731
    makers = {"default_limit": _number, "granularity": granularity, "op_granularity_run_buffer": _number}
    return _some(choice, makers)


def _runs(choice: random.Random) -> Any:
    return _some(choice, {"max_concurrent_runs": _number, "tag_concurrency_limits": _list_of_rules})


def _queue(choice: random.Random) -> Any:
    truth = lambda choice: choice.choice([True, True, False])  # noqa: E731
    blocking = lambda choice: _some(choice, {"enabled": truth, "op_concurrency_slot_buffer": _number})  # noqa: E731
    makers = {
        "max_concurrent_runs": _source,
        "tag_concurrency_limits": _list_of_rules,
        "dequeue_interval_seconds": _source,
        "dequeue_use_threads": truth,
        "block_op_concurrency_limited_runs": blocking,
    }
    return _some(choice, makers)


# -- what of a document is a documented difference ---------------------------------------------------------------------


def _nulls(document: dict[str, Any]) -> bool:
    block = document.get("concurrency", {})
    if any(document.get(name, {}) is None for name in ("concurrency", "run_queue", "run_monitoring")):
        return True
    return isinstance(block, dict) and any(block.get(name, {}) is None for name in ("pools", "runs"))


def _rules(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for rules in _lists(document) for rule in rules if isinstance(rule, dict)]


def _lists(document: Any) -> list[list[Any]]:
    if not isinstance(document, dict):
        return []
    own = document.get("tag_concurrency_limits")
    return [*([own] if isinstance(own, list) else []), *(found for part in document.values() for found in _lists(part))]


def _twice(document: dict[str, Any]) -> bool:
    def name(rule: dict[str, Any]) -> tuple[Any, str]:
        value = rule.get("value")
        return rule.get("key"), "None" if value == {"applyLimitPerUniqueValue": False} else repr(value)

    return any(len({name(rule) for rule in rules if isinstance(rule, dict)}) < len(rules) for rules in _lists(document))


def _aside(document: dict[str, Any]) -> bool:
    """Whether the interval of the queue is in a variable that holds none."""
    coordinator = document.get("run_coordinator")
    for queue in (document.get("run_queue"), coordinator.get("config") if isinstance(coordinator, dict) else None):
        interval = queue.get("dequeue_interval_seconds") if isinstance(queue, dict) else None
        if isinstance(interval, dict) and interval.get("env") in ("NOWHERE", "WORDS"):
            return True
    return False


def _numbers(part: Any) -> list[int]:
    """Every number below, but for -1 where it means no limit."""
    if isinstance(part, dict):
        return [
            number
            for key, value in part.items()
            for number in _numbers(value)
            if not (key == "max_concurrent_runs" and number == -1)
        ]
    if isinstance(part, list):
        return [number for value in part for number in _numbers(value)]
    return [part] if isinstance(part, int) and not isinstance(part, bool) else []


# What Dagster takes and we refuse (True), or the other way round, since ...
DIFFERENCES: dict[str, tuple[bool, Callable[[dict[str, Any]], bool]]] = {
    "a limit is never negative": (True, lambda document: any(value < 0 for value in _numbers(document))),
    "a limit is at most 10000": (True, lambda document: any(value > 10_000 for value in _numbers(document))),
    "the same rule twice": (True, _twice),
    "a tag's key is not empty": (True, lambda document: any(rule.get("key") == "" for rule in _rules(document))),
    "a block with nothing below it is absent": (False, _nulls),
    "a variable that bears on no limit need not be set": (False, _aside),
}
