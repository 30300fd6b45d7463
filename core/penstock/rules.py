"""Which limits a claim must pass: claim + configuration → demands. Pure functions, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from penstock.claim import Claim, ClaimKind, encode_part
from penstock.config import Concurrency, Granularity, TagLimit


class LimitKind(StrEnum):
    """What a limit bounds."""

    POOL = "pool"
    RUNS = "runs"
    RUN_TAG = "run_tag"
    RUN_OPS = "run_ops"
    RUN_OP_TAG = "run_op_tag"


class Source(StrEnum):
    """Where a capacity comes from: set for this limit, the default for pools, a rule, or nowhere."""

    EXPLICIT = "explicit"
    DEFAULT = "default"
    RULE = "rule"
    NONE = "none"


@dataclass(frozen=True, slots=True, order=True)
class Demand:
    """One limit that a claim must pass, the slots that it takes there, and the limit as configured now."""

    key: str
    slots: int
    capacity: int | None
    source: Source

    @property
    def impossible(self) -> bool:
        """More slots than there will ever be. A closed limit (0) is not impossible: it may open again."""
        return self.capacity is not None and 0 < self.capacity < self.slots


def limit_kind(key: str) -> LimitKind:
    """The kind of a limit, read off its key."""
    return LimitKind(key.partition(":")[0])


def pool_key(name: str) -> str:
    """The key of a pool's limit."""
    return f"pool:{name}"


def resolve_limit(key: str, concurrency: Concurrency) -> tuple[int | None, Source]:
    """(capacity, source) that the configuration gives to the limit of this key now; (None, NONE) where it has none."""
    match limit_kind(key):
        case LimitKind.POOL:
            name = key.removeprefix("pool:")
            if (own := concurrency.pools.limits.get(name)) is not None:
                return own.limit, Source.EXPLICIT
            default = concurrency.pools.default_limit
            return (default, Source.NONE if default is None else Source.DEFAULT)
        case LimitKind.RUNS:
            total = concurrency.runs.capacity
            return (total, Source.NONE if total is None else Source.RULE)
        case LimitKind.RUN_OPS:
            within = concurrency.ops.max_concurrent
            return (within, Source.NONE if within is None else Source.RULE)
        case LimitKind.RUN_TAG:
            rules, rest = concurrency.runs.tag_concurrency_limits, key.split(":", 1)[1]
        case LimitKind.RUN_OP_TAG:
            rules, rest = concurrency.ops.tag_concurrency_limits, key.split(":", 2)[2]
    for rule in rules:
        pattern = _tag_part(rule, "")
        if rest == pattern or (rule.per_unique_value and rest.startswith(pattern)):
            return rule.limit, Source.RULE
    return None, Source.NONE


def demands(claim: Claim, concurrency: Concurrency) -> tuple[Demand, ...]:
    """Everything a claim must pass, ordered by key (the one order in which limits are created and locked).

    A run claim passes the run total, every run-tag rule that matches, and the pools declared on the run itself. An op
    claim passes its pools of op granularity and, inside a run under limits, that run's own limits. The rules are
    Dagster's (pools, run queue, executor), with its gaps closed: a default covers a pool from the first claim on.
    """
    wanted: dict[str, int] = {}
    if claim.kind is ClaimKind.RUN:
        wanted["runs"] = 1
        for rule in concurrency.runs.tag_concurrency_limits:
            if (value := _matching_value(rule, claim)) is not None:
                wanted[f"run_tag:{_tag_part(rule, value)}"] = 1
        wanted |= {pool_key(name): slots for name, slots in claim.pools.items()}
    else:
        for name, slots in claim.pools.items():
            if concurrency.pool_granularity(name) is Granularity.OP:
                wanted[pool_key(name)] = slots
        if claim.in_run:
            run = "/".join(encode_part(part) for part in (claim.host, claim.deployment, claim.run_id or ""))
            if concurrency.ops.max_concurrent is not None:
                wanted[f"run_ops:{run}"] = 1
            for rule in concurrency.ops.tag_concurrency_limits:
                if (value := _matching_value(rule, claim)) is not None:
                    wanted[f"run_op_tag:{run}:{_tag_part(rule, value)}"] = 1
    return tuple(sorted(Demand(key, slots, *resolve_limit(key, concurrency)) for key, slots in wanted.items()))


def configured_keys(concurrency: Concurrency) -> list[str]:
    """The limits that exist by configuration alone, before any claim names them, in order."""
    keys = [pool_key(name) for name in concurrency.pools.limits]
    if concurrency.runs.capacity is not None:
        keys.append("runs")
    keys += [f"run_tag:{_tag_part(r, '')}" for r in concurrency.runs.tag_concurrency_limits if not r.per_unique_value]
    return sorted(keys)


def _matching_value(rule: TagLimit, claim: Claim) -> str | None:
    value = claim.tags.get(rule.key)
    return None if value is None or (isinstance(rule.value, str) and rule.value != value) else value


def _tag_part(rule: TagLimit, value: str) -> str:
    """`KEY`, `KEY=VALUE` or, for one value of a per-value rule, `KEY=*:VALUE`."""
    key = encode_part(rule.key)
    if rule.per_unique_value:
        return f"{key}=*:{encode_part(value)}"
    return key if rule.value is None else f"{key}={encode_part(str(rule.value))}"
