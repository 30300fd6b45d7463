"""One limit of the configuration set or deleted by its key, as `penstock limits set` takes it. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.claim import TEXT_MAX_BYTES, check_pool_name, check_text, encode_part
from penstock.config import Concurrency, PerUniqueValue, PoolLimit, TagLimit
from penstock.errors import LimitNotSettable
from penstock.rules import pool_key

DEFAULT_LIMIT = "pools.default_limit"
RUNS = "runs"
SETTABLE = f"pool:NAME, {RUNS}, run_tag:KEY, run_tag:KEY=VALUE, run_tag:KEY=*, {DEFAULT_LIMIT}"
_ENCODED_IN_PART = re.compile(r"%(25|3A|3D|2F|2A)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """What a key names: one of the pools, the run total, the default, or the rule on a run tag."""

    key: str
    pool: str | None = None
    rule: TagLimit | None = None


def target_of(text: str) -> Target:
    """What may be set under this key, written as in `limits list`. Raises LimitNotSettable with what to do instead.

    In a run-tag key the reserved characters need their percent-code only where they would be read otherwise, so
    `run_tag:dagster/backfill` is understood.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise LimitNotSettable(f"limit key {text!r}: not UTF-8 text; give it as UTF-8")
    if len(text) > TEXT_MAX_BYTES:
        raise LimitNotSettable(f"limit key {text[:40]!r}…: more than {TEXT_MAX_BYTES} characters")
    kind, colon, rest = text.partition(":")
    match kind if colon else text:
        case "pools.default_limit" | "runs" if not colon:
            return Target(text)
        case "pool" if colon:
            return Target(pool_key(check_pool_name(rest)), pool=rest)
        case "run_tag" if rest:
            rule = _run_tag_rule(text, rest)
            value = "*" if rule.per_unique_value else None if rule.value is None else encode_part(str(rule.value))
            return Target(f"run_tag:{encode_part(rule.key)}" + ("" if value is None else f"={value}"), rule=rule)
        case "run_ops":
            raise LimitNotSettable(
                f"{text!r} is one run's share of the rule ops.max_concurrent; change that in the configuration file "
                "and `penstock apply` it"
            )
        case "run_op_tag":
            raise LimitNotSettable(
                f"{text!r} is one run's share of a rule in ops.tag_concurrency_limits; change that in the "
                "configuration file and `penstock apply` it"
            )
    raise LimitNotSettable(f"{text!r} is no limit that can be set; settable are {SETTABLE}")


def with_limit(concurrency: Concurrency, target: Target, limit: int | None) -> Concurrency:
    """The same configuration with that limit set, or (None) deleted. A pool keeps its granularity and description."""
    if target.pool is not None:
        if limit is None:
            return concurrency.with_pool(target.pool, None)
        own = concurrency.pools.limits.get(target.pool, PoolLimit(limit=limit))
        return concurrency.with_pool(target.pool, own.model_copy(update={"limit": limit}))
    if target.rule is not None:
        return _with_rule(concurrency, target.rule, limit)
    if target.key == RUNS:
        return concurrency.model_copy(
            update={"runs": concurrency.runs.model_copy(update={"max_concurrent_runs": limit})}
        )
    return concurrency.model_copy(update={"pools": concurrency.pools.model_copy(update={"default_limit": limit})})


def is_set(concurrency: Concurrency, target: Target) -> bool:
    """Whether the configuration has a limit of its own there."""
    if target.pool is not None:
        return target.pool in concurrency.pools.limits
    if target.rule is not None:
        return any(_same_tag(rule, target.rule) for rule in concurrency.runs.tag_concurrency_limits)
    return (concurrency.runs.capacity if target.key == RUNS else concurrency.pools.default_limit) is not None


def _run_tag_rule(text: str, rest: str) -> TagLimit:
    key, equals, value = rest.partition("=")
    if not key:
        raise LimitNotSettable(f"{text!r} names no tag; write run_tag:KEY")
    if value.startswith("*:"):
        raise LimitNotSettable(f"{text!r} is one value's share of the rule 'run_tag:{key}=*'; set that rule")
    key = check_text(_decoded(key), "tag")
    if not equals:
        return TagLimit(key=key, limit=0)
    per_value = PerUniqueValue(applyLimitPerUniqueValue=True)
    return TagLimit(key=key, value=per_value if value == "*" else check_text(_decoded(value), "value"), limit=0)


def _decoded(part: str) -> str:
    return _ENCODED_IN_PART.sub(lambda match: chr(int(match[1], 16)), part)


def _with_rule(concurrency: Concurrency, wanted: TagLimit, limit: int | None) -> Concurrency:
    """A rule that exists keeps its place: the order of rules is the file's."""
    new = [] if limit is None else [wanted.model_copy(update={"limit": limit})]
    rules: list[TagLimit] = []
    for rule in concurrency.runs.tag_concurrency_limits:
        if _same_tag(rule, wanted):
            rules += new
            new = []
        else:
            rules.append(rule)
    update = {"tag_concurrency_limits": (*rules, *new)}
    return concurrency.model_copy(update={"runs": concurrency.runs.model_copy(update=update)})


def _same_tag(one: TagLimit, other: TagLimit) -> bool:
    return (one.key, one.value) == (other.key, other.value)
