"""From what Prefect knows of a run to what is claimed for it. Pure functions and values: no I/O, no Prefect import."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from penstock.claim import Claim, ClaimKind, PoolsLike, check_pool_name, parse_pools, parse_tag
from penstock.errors import ClaimError

if TYPE_CHECKING:
    from penstock.lease import Lease

OnBlocked = Literal["wait", "skip", "fail"]
_BLOCKED_CHOICES = ("wait", "skip", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What `@limited` or `slots` was given. `wait_timeout_seconds` None waits for ever."""

    pools: Mapping[str, int] = field(default_factory=dict)
    priority: int = 0
    on_blocked: OnBlocked = "wait"
    wait_timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.on_blocked not in _BLOCKED_CHOICES:
            raise ClaimError(f"on_blocked={self.on_blocked!r}: use one of {', '.join(map(repr, _BLOCKED_CHOICES))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFacts:
    """A flow run as Prefect knows it. `run_count` is 1 on the first attempt."""

    flow_run_id: str
    flow_name: str
    run_count: int = 1
    deployment_name: str | None = None
    work_pool_name: str | None = None
    scheduled: bool = False
    tags: frozenset[str] = frozenset()
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """A task run as Prefect knows it. `run_count` is 1 on the first attempt."""

    task_run_id: str
    task_name: str
    run_count: int = 1
    flow_run_id: str | None = None
    tags: frozenset[str] = frozenset()
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the code running at some place stands under.

    `run_id` is the run under limits (None outside one), `step_id` the limited op. `run_pools` are held by the flows
    around it and cover the asks of tasks; `step_pools` are held by the op itself and cover only blocks nested in it.
    `lease` is the innermost one. `ended` is set when the limited flow around it is torn down: waiters give up then.
    """

    run_id: str | None = None
    step_id: str | None = None
    priority: int = 0
    run_pools: Mapping[str, int] = field(default_factory=dict)
    step_pools: Mapping[str, int] = field(default_factory=dict)
    lease: Lease | None = None
    ended: threading.Event | None = None


NOWHERE = Standing()


def asked_pools(pools: Iterable[PoolsLike | int], slots: int | None = None) -> dict[str, int]:
    """Pools as written: `"a"`, `"a:2"`, `{"a": 2}`, several of these, or one name with the slots beside it."""
    names = list(pools)
    if len(names) == 2 and isinstance(names[1], int) and slots is None:
        slots = names.pop()  # type: ignore[assignment]  # just found to be a number
    if any(isinstance(name, int) for name in names):
        raise ClaimError(f"{names!r}: a number of slots follows exactly one pool name; for several write 'name:slots'")
    if slots is None:
        return parse_pools(name for name in names if not isinstance(name, int))
    if len(names) != 1 or not isinstance(names[0], str):
        raise ClaimError(f"slots={slots} belongs to one pool, {len(names)} are named; write 'name:slots' for each")
    return {check_pool_name(names[0]): slots}


def tags_of(tags: Iterable[str], implicit: Mapping[str, str | None]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Prefect's tags (`key:value` or `key`) and the implicit ones as one mapping, and the tags that found no place.

    A key has one value: of several the first in alphabetical order counts, and an implicit tag comes before all.
    """
    parsed: dict[str, str] = {key: value for key, value in implicit.items() if value is not None}
    ignored = []
    for tag in sorted(tags):
        key, value = parse_tag(tag)
        if parsed.setdefault(key, value) != value:
            ignored.append(tag)
    return parsed, tuple(ignored)


def run_tags(facts: FlowFacts) -> tuple[dict[str, str], tuple[str, ...]]:
    """The tags of a run, and those left out."""
    return tags_of(
        facts.tags,
        {
            "prefect/flow": facts.flow_name,
            "prefect/deployment": facts.deployment_name,
            "prefect/work_pool": facts.work_pool_name,
            "prefect/schedule": "true" if facts.scheduled else None,
        },
    )


def op_tags(facts: TaskFacts) -> tuple[dict[str, str], tuple[str, ...]]:
    """The tags of an op, and those left out."""
    return tags_of(facts.tags, {"prefect/task": facts.task_name})


def run_claim(facts: FlowFacts, limits: Limits, deployment: str) -> tuple[Claim, Standing]:
    """The claim of a whole run: made once by the outermost flow under `@limited`, whatever its subflows are."""
    claim = Claim(
        kind=ClaimKind.RUN,
        host="prefect",
        deployment=deployment,
        run_id=facts.flow_run_id,
        attempt=facts.run_count,
        pools=limits.pools,
        tags=run_tags(facts)[0],
        priority=limits.priority,
        url=facts.url,
    )
    standing = Standing(
        run_id=facts.flow_run_id, priority=limits.priority, run_pools=limits.pools, ended=threading.Event()
    )
    return claim, standing


def subflow_claim(
    facts: FlowFacts, limits: Limits, deployment: str, standing: Standing
) -> tuple[Claim | None, Standing]:
    """What a flow takes inside a run under limits: only pools of its own that the run does not hold already.

    It is no op of the run's own limits (`run_ops`): its tasks are, and it would wait for itself.
    """
    pools = uncovered(limits.pools, standing.run_pools, "run")
    below = replace(
        standing,
        step_id=None,
        step_pools={},
        priority=standing.priority + limits.priority,
        run_pools={**standing.run_pools, **pools},
        ended=threading.Event(),
    )
    claim = _op_claim(
        deployment, standing.run_id, facts.flow_run_id, facts.run_count, pools, {}, below.priority, facts.url
    )
    return (claim if pools else None), below


def task_claim(facts: TaskFacts, limits: Limits, deployment: str, standing: Standing) -> tuple[Claim | None, Standing]:
    """The claim of one attempt of a task; None when nothing limits it."""
    in_run = standing.run_id is not None
    pools = uncovered(limits.pools, standing.run_pools, "run")
    within = replace(standing, step_id=facts.task_run_id, step_pools=pools)
    claim = _op_claim(
        deployment,
        standing.run_id or facts.flow_run_id,
        facts.task_run_id,
        facts.run_count,
        pools,
        op_tags(facts)[0],
        standing.priority + limits.priority,
        facts.url,
        in_run=in_run,
    )
    return (claim if pools or in_run else None), within


def block_claim(limits: Limits, deployment: str, standing: Standing, block_id: str) -> tuple[Claim | None, Standing]:
    """The claim of a `slots` block; None when what it asks is held around it. `block_id` is new for each entry."""
    held = {**standing.run_pools, **standing.step_pools}
    pools = uncovered(limits.pools, held, "op" if standing.step_id else "run")
    within = replace(standing, step_id=block_id, step_pools={**standing.step_pools, **pools})
    # A block inside a limited op is part of that op: counted again within the run it could wait for itself.
    in_run = standing.run_id is not None and standing.step_id is None
    claim = _op_claim(
        deployment,
        standing.run_id,
        block_id,
        1,
        pools,
        {},
        standing.priority + limits.priority,
        None,
        in_run=in_run,
    )
    return (claim if pools else None), within


def uncovered(pools: Mapping[str, int], held: Mapping[str, int], holder: str) -> dict[str, int]:
    """The pools that are not held around the asker. Raises ClaimError when one is held with fewer slots than asked."""
    for name, slots in pools.items():
        if name in held and slots > held[name]:
            raise ClaimError(
                f"pool {name!r}: {slots} slots asked inside a {holder} that holds {held[name]} of it; "
                f"let the {holder} take {slots}, or ask for at most {held[name]} here"
            )
    return {name: slots for name, slots in pools.items() if name not in held}


def _op_claim(
    deployment: str,
    run_id: str | None,
    op_id: str,
    attempt: int,
    pools: Mapping[str, int],
    tags: Mapping[str, str],
    priority: int,
    url: str | None,
    *,
    in_run: bool = False,
) -> Claim:
    return Claim(
        kind=ClaimKind.OP,
        host="prefect",
        deployment=deployment,
        run_id=run_id,
        op_id=op_id,
        attempt=attempt,
        pools=pools,
        tags=tags,
        priority=priority,
        url=url,
        in_run=in_run,
    )
