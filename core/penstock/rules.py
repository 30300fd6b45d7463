"""Which limits a claim must pass: claim + configuration → demands. Pure functions, no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from penstock.claim import NAME_MAX_CHARACTERS, Claim, ClaimKind, encode_part
from penstock.config import Concurrency, Granularity, TagLimit
from penstock.errors import ClaimError


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


@dataclass(frozen=True, slots=True)
class Standing:
    """What an op stands on: what is held around it (limit key → slots), and its run's own limits on ops.

    `run_claim_id` is its run's claim, `run_waits`: it has no lease yet, `run_skipped`: nor will it have one; `nested`:
    an op around it holds slots.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    within: Mapping[str, Any] | None = None
    run_claim_id: str | None = None
    run_waits: bool = False
    run_skipped: bool = False
    nested: bool = False


ALONE = Standing()


def limit_kind(key: str) -> LimitKind:
    """The kind of a limit, read off its key."""
    return LimitKind(key.partition(":")[0])


def pool_key(name: str) -> str:
    """The key of a pool's limit."""
    return f"pool:{name}"


KEY_MAX_BYTES = 65_535  # what MariaDB calls TEXT
OP_POOL = "op/"
_UNUSABLE_IN_NAME = re.compile(r"[%\s\x00-\x1f\x7f-\x9f]|:(?=\d+$)")
"""How the pools begin that ops get by the setting `pool_per_op`; without a limit and a default they have one slot."""


def op_pool(claim: Claim) -> str:
    """The name of an op's own pool: `op/DEPLOYMENT/STEP`, percent-encoded where a name cannot hold it.

    No two steps have one name: two ops would share the pool, and nobody would see why one of them waits.
    """
    name = f"{own_pools_of(claim.deployment)}{_usable(claim.step or '')}"
    if len(name) <= NAME_MAX_CHARACTERS:
        return name
    return f"{name[:200]}…{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def own_pools_of(deployment: str) -> str:
    """What the names of all pools of single ops of an installation begin with."""
    return f"{OP_POOL}{_usable(deployment)}/"


def _usable(text: str) -> str:
    return _UNUSABLE_IN_NAME.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def is_runs_own(key: str, source: Source) -> bool:
    """Whether a run brought this limit itself, so that the configuration does not say its capacity."""
    return source is Source.EXPLICIT and limit_kind(key) in (LimitKind.RUN_OPS, LimitKind.RUN_OP_TAG)


def resolve_limit(key: str, concurrency: Concurrency) -> tuple[int | None, Source]:
    """(capacity, source) that the configuration gives to the limit of this key now; (None, NONE) where it has none."""
    match limit_kind(key):
        case LimitKind.POOL:
            name = key.removeprefix("pool:")
            if (own := concurrency.pools.limits.get(name)) is not None:
                return own.limit, Source.EXPLICIT
            default = concurrency.pools.default_limit
            if default is None and name.startswith(OP_POOL):
                default = 1
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


def demands(claim: Claim, concurrency: Concurrency, standing: Standing = ALONE) -> tuple[Demand, ...]:
    """Everything a claim must pass, ordered by key (the one order in which limits are created and locked).

    A run claim passes the run total, every run-tag rule that matches, and the pools declared on the run itself. An op
    claim passes its pools of op granularity and, inside a run under limits, that run's own limits; pools that are held
    around it cover what it asks of them. The rules are Dagster's (pools, run queue, executor), with its gaps closed: a
    default covers a pool from the first claim on. Raises ClaimError where the claim contradicts the rules.
    """
    match claim.kind:
        case ClaimKind.RUN:
            return _run_demands(claim, concurrency)
        case ClaimKind.RUN_POOL:
            return _resolved({pool_key(name): slots for name, slots in claim.pools.items()}, concurrency)
        case ClaimKind.OP:
            return _op_demands(claim, concurrency, standing)


def _run_demands(claim: Claim, concurrency: Concurrency) -> tuple[Demand, ...]:
    wanted = {"runs": 1}
    for rule in concurrency.runs.tag_concurrency_limits:
        if (value := _matching_value(rule, claim)) is not None:
            wanted[_bounded(f"run_tag:{_tag_part(rule, value)}")] = 1
    wanted |= {pool_key(name): slots for name, slots in claim.pools.items()}
    return _resolved(wanted, concurrency)


def _op_demands(claim: Claim, concurrency: Concurrency, standing: Standing) -> tuple[Demand, ...]:
    pools = {
        pool_key(name): slots
        for name, slots in claim.pools.items()
        if not _covered(name, slots, standing) and concurrency.pool_granularity(name) is Granularity.OP
    }
    return tuple(sorted([*_resolved(pools, concurrency), *_within_run(claim, concurrency, standing)]))


def _within_run(claim: Claim, concurrency: Concurrency, standing: Standing) -> list[Demand]:
    """What is held around the op covers these, too: a block in an op is not a second op of its run."""
    if not claim.in_run:
        return []
    run = "/".join(encode_part(part) for part in (claim.host, claim.deployment, claim.run_id or ""))
    ops, own = concurrency.ops.replaced_by(standing.within), standing.within or {}
    result = []
    if ops.max_concurrent is not None:
        source = Source.EXPLICIT if "max_concurrent" in own else Source.RULE
        result.append(Demand(_bounded(f"run_ops:{run}"), 1, ops.max_concurrent, source))
    source = Source.EXPLICIT if "tag_concurrency_limits" in own else Source.RULE
    result += [
        Demand(_bounded(f"run_op_tag:{run}:{_tag_part(rule, value)}"), 1, rule.limit, source)
        for rule in ops.tag_concurrency_limits
        if (value := _matching_value(rule, claim)) is not None
    ]
    return [demand for demand in result if demand.key not in standing.held]


def late_pools(claim: Claim, concurrency: Concurrency, standing: Standing = ALONE) -> dict[str, int]:
    """Pools of run granularity that an op names and its run does not hold yet: the run takes them first.

    Raises ClaimError for one outside a run under limits: nobody would ever give its slots back.
    """
    late = {
        name: slots
        for name, slots in claim.pools.items()
        if claim.kind is ClaimKind.OP
        and concurrency.pool_granularity(name) is Granularity.RUN
        and not _covered(name, slots, standing)
    }
    if late and not claim.in_run:
        raise ClaimError(
            f"{claim}: pool {next(iter(late))!r} has run granularity, and this claim is in no run under limits; "
            "give it a run (run_id=…, --run-id), or set the pool's granularity to op"
        )
    return late


def _covered(name: str, slots: int, standing: Standing) -> bool:
    held = standing.held.get(pool_key(name), 0)
    if 0 < held < slots:
        raise ClaimError(
            f"pool {name!r}: {slots} slots asked inside of what holds {held}; take {slots} there, or ask for less here"
        )
    return held >= slots


def root_pools_full(
    root_ops: Collection[Collection[str]], room: Mapping[str, int], concurrency: Concurrency
) -> tuple[str, ...]:
    """The pools for which a run whose root ops these are (the pools of each) is held back; empty: it may start.

    `room`: pool → free slots less those that waiters and started runs still want; a pool that is not in it has all its
    slots free. A run is held back when every root op needs a full pool of op granularity; `op_granularity_run_buffer`
    more may start. The rule and its buffer are Dagster's (run queue, pools.op_granularity_run_buffer).
    """
    barred: set[str] = set()
    for pools in root_ops:
        full = {name for name in pools if _is_full(name, room, concurrency)}
        if not full:
            return ()
        barred |= full
    return tuple(sorted(barred))


def _is_full(name: str, room: Mapping[str, int], concurrency: Concurrency) -> bool:
    capacity, _ = resolve_limit(pool_key(name), concurrency)
    if capacity is None or concurrency.pool_granularity(name) is not Granularity.OP:
        return False
    return room.get(name, capacity) + concurrency.pools.op_granularity_run_buffer <= 0


def configured_keys(concurrency: Concurrency) -> list[str]:
    """The limits that exist by configuration alone, before any claim names them, in order."""
    keys = [pool_key(name) for name in concurrency.pools.limits]
    if concurrency.runs.capacity is not None:
        keys.append("runs")
    keys += [f"run_tag:{_tag_part(r, '')}" for r in concurrency.runs.tag_concurrency_limits if not r.per_unique_value]
    return sorted(keys)


def _bounded(key: str) -> str:
    if 4 * len(key) > KEY_MAX_BYTES and (size := len(key.encode())) > KEY_MAX_BYTES:
        raise ClaimError(
            f"limit {key[:60]}…: {size} bytes in its name; at most {KEY_MAX_BYTES} fit: shorten the tag or the run's id"
        )
    return key


def _resolved(wanted: Mapping[str, int], concurrency: Concurrency) -> tuple[Demand, ...]:
    return tuple(sorted(Demand(key, slots, *resolve_limit(key, concurrency)) for key, slots in wanted.items()))


def _matching_value(rule: TagLimit, claim: Claim) -> str | None:
    value = claim.tags.get(rule.key)
    return None if value is None or (isinstance(rule.value, str) and rule.value != value) else value


def _tag_part(rule: TagLimit, value: str) -> str:
    """`KEY`, `KEY=VALUE` or, for one value of a per-value rule, `KEY=*:VALUE`."""
    key = encode_part(rule.key)
    if rule.per_unique_value:
        return f"{key}=*:{encode_part(value)}"
    return key if rule.value is None else f"{key}={encode_part(str(rule.value))}"
