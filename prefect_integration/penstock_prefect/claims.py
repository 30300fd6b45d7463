"""From what Prefect knows of a run to what is claimed for it. Pure functions and values: no I/O, no Prefect import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, get_args

from penstock.claim import Claim, ClaimKind, PoolsLike, check_pool_name, parse_pools, parse_tag
from penstock.config import check_within
from penstock.errors import ClaimError
from penstock.settings import OnBlocked

if TYPE_CHECKING:
    from threading import Event

    from penstock.lease import Lease

    from penstock_prefect.absence import Absence

HOST = "prefect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What `@limited` or `slots` was given. `wait_timeout_seconds` None waits for ever.

    `within`: a run's own limits on its tasks, in the form of the configuration's `ops` block; None leaves those.
    """

    pools: Mapping[str, int] = field(default_factory=dict)
    priority: int = 0
    on_blocked: OnBlocked = "wait"
    wait_timeout_seconds: float | None = None
    within: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ClaimError(f"priority={self.priority!r}: a whole number is expected")
        if self.on_blocked not in get_args(OnBlocked):
            choices = ", ".join(map(repr, get_args(OnBlocked)))
            raise ClaimError(f"on_blocked={self.on_blocked!r}: use one of {choices}")
        timeout = self.wait_timeout_seconds
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0):
            raise ClaimError(f"wait_timeout_seconds={timeout!r}: a number of seconds of at least 0 is expected")
        if timeout is not None and self.on_blocked != "wait":
            raise ClaimError(
                f'wait_timeout_seconds={timeout:g} with on_blocked="{self.on_blocked}": '
                "that one never waits; leave one of them out"
            )
        if self.within is not None:
            check_within(self.within)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFacts:
    """A flow run as Prefect knows it. `run_count` is 1 on the first attempt."""

    flow_run_id: str
    flow_name: str
    flow_run_name: str | None = None
    run_count: int = 1
    deployment_name: str | None = None
    work_pool_name: str | None = None
    scheduled: bool = False
    tags: frozenset[str] = frozenset()
    url: str | None = None

    @property
    def name(self) -> str:
        """How people know the run, such as `nightly/amber-fox`."""
        return "/".join(filter(None, (self.flow_name, self.flow_run_name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """A task run as Prefect knows it. `run_count` is 1 on the first attempt.

    `flow_name` and `flow_run_name` are None outside flows. `own_tags` are those of the task itself, among `tags`: the
    others come from `tags()` and the flow run around it.
    """

    task_run_id: str
    task_name: str
    task_run_name: str | None = None
    run_count: int = 1
    flow_run_id: str | None = None
    flow_name: str | None = None
    flow_run_name: str | None = None
    tags: frozenset[str] = frozenset()
    own_tags: frozenset[str] = frozenset()
    url: str | None = None

    @property
    def name(self) -> str:
        """How people know the task run, such as `nightly/amber-fox query-0`."""
        flow = "/".join(filter(None, (self.flow_name, self.flow_run_name)))
        return " ".join(filter(None, (flow, self.task_run_name or self.task_name)))

    @property
    def step(self) -> str:
        """The op over all runs, such as `nightly.query`."""
        return ".".join(filter(None, (self.flow_name, self.task_name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the code running at some place stands under.

    `run_id` is the run under limits (None outside one), and `run_claim_id` the claim of its lease; `op_claim_id` that
    of the limited op or block around. `run_pools` are held by the flows around it and cover the asks of tasks;
    `op_pools` are held by the op itself and cover only blocks nested in it. `lease` is the innermost one. `ended` is
    set when the limited flow around it is torn down: waiters give up then. `absence` is that of the run's own lease.
    """

    run_id: str | None = None
    run_claim_id: str | None = None
    op_claim_id: str | None = None
    priority: int = 0
    run_pools: Mapping[str, int] = field(default_factory=dict)
    op_pools: Mapping[str, int] = field(default_factory=dict)
    lease: Lease | None = None
    ended: Event | None = None
    absence: Absence | None = None

    def as_dict(self) -> dict[str, Any]:
        """What of it concerns the whole run, as plain JSON values: for tasks of the run in other processes."""
        return {
            "run_id": self.run_id,
            "run_claim_id": self.run_claim_id,
            "priority": self.priority,
            "run_pools": dict(self.run_pools),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `as_dict`."""
        return cls(**values)


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


def tags_of(implicit: Mapping[str, str | None], *groups: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Prefect's tags (`key:value` or `key`) and the implicit ones as one mapping, and the tags that found no place.

    A key has one value. An implicit tag comes before all, then those of an earlier group, such as a task's own before
    those around it; within a group the first in alphabetical order counts. Only what its own group has two of, or what
    an implicit tag stands for, has found no place by mistake.
    """
    parsed: dict[str, str] = {key: value for key, value in implicit.items() if value is not None}
    reserved, ignored = set(parsed), []
    for tags in groups:
        before = dict(parsed)
        for tag in sorted(tags):
            key, value = parse_tag(tag)
            if parsed.setdefault(key, value) != value and (key not in before or key in reserved):
                ignored.append(tag)
    return parsed, tuple(ignored)


def run_tags(facts: FlowFacts) -> tuple[dict[str, str], tuple[str, ...]]:
    """The tags of a run, and those left out."""
    return tags_of(
        {
            "prefect/flow": facts.flow_name,
            "prefect/deployment": facts.deployment_name,
            "prefect/work_pool": facts.work_pool_name,
            "prefect/schedule": "true" if facts.scheduled else None,
        },
        facts.tags,
    )


def op_tags(facts: TaskFacts) -> tuple[dict[str, str], tuple[str, ...]]:
    """The tags of an op, and those left out."""
    own = facts.own_tags & facts.tags
    return tags_of({"prefect/task": facts.task_name}, own, facts.tags - own)


def run_claim(facts: FlowFacts, limits: Limits, deployment: str) -> tuple[Claim, Standing]:
    """The claim of a whole run: made once by the outermost flow under `@limited`, whatever its subflows are."""
    claim = Claim(
        kind=ClaimKind.RUN,
        host=HOST,
        deployment=deployment,
        run_id=facts.flow_run_id,
        attempt=facts.run_count,
        pools=limits.pools,
        tags=run_tags(facts)[0],
        priority=limits.priority,
        url=facts.url,
        within=limits.within,
        name=facts.name,
    )
    return claim, Standing(run_id=facts.flow_run_id, priority=limits.priority, run_pools=limits.pools)


def subflow_claim(
    facts: FlowFacts, limits: Limits, deployment: str, standing: Standing
) -> tuple[Claim | None, Standing]:
    """What a flow takes inside a run under limits: only pools of its own that the run does not hold already.

    It is no op of the run's own limits (`run_ops`): its tasks are, and it would wait for itself. A task around it
    shares its slots with no other task, so neither with those of this flow.
    """
    pools = uncovered(limits.pools, standing.run_pools, "run")
    priority = standing.priority + limits.priority
    below = replace(
        standing, op_claim_id=None, op_pools={}, priority=priority, run_pools={**standing.run_pools, **pools}
    )
    if not pools:
        return None, below
    claim = _op_claim(
        facts, deployment, run_id=standing.run_id, op_id=facts.flow_run_id, pools=pools, priority=priority
    )
    return claim, below


def task_claim(facts: TaskFacts, limits: Limits, deployment: str, standing: Standing) -> tuple[Claim, Standing]:
    """The claim of one attempt of a task; it may ask for nothing. Raises ClaimError as `check_of_task`."""
    check_of_task(facts.task_name, limits)
    pools = uncovered(limits.pools, standing.run_pools, "run")
    claim = _op_claim(
        facts,
        deployment,
        run_id=standing.run_id or facts.flow_run_id,
        op_id=facts.task_run_id,
        pools=pools,
        tags=op_tags(facts)[0],
        priority=standing.priority + limits.priority,
        in_run=standing.run_id is not None,
        step=facts.step,
    )
    return claim, replace(standing, op_claim_id=claim.claim_id, op_pools=pools)


def block_claim(limits: Limits, deployment: str, standing: Standing, around: str) -> tuple[Claim | None, Standing]:
    """The claim of a `slots` block; None when what it asks is held around it. `around` names for people where it is.

    It has no op id, so that no other block is ever taken for it.
    """
    held = {**standing.run_pools, **standing.op_pools}
    pools = uncovered(limits.pools, held, "op" if standing.op_claim_id else "run")
    if not pools:
        return None, standing
    claim = Claim(
        kind=ClaimKind.OP,
        host=HOST,
        deployment=deployment,
        run_id=standing.run_id,
        pools=pools,
        priority=standing.priority + limits.priority,
        in_run=standing.run_id is not None,
        parent_id=standing.op_claim_id,
        name=f"{around} slots",
    )
    return claim, replace(standing, op_claim_id=claim.claim_id, op_pools={**standing.op_pools, **pools})


def _op_claim(facts: FlowFacts | TaskFacts, deployment: str, **of_claim: Any) -> Claim:
    return Claim(
        kind=ClaimKind.OP,
        host=HOST,
        deployment=deployment,
        attempt=facts.run_count,
        url=facts.url,
        name=facts.name,
        **of_claim,
    )


def check_of_task(task_name: str, limits: Limits) -> None:
    """Raises ClaimError on words that only a flow can be given."""
    if limits.within is not None:
        words = " and ".join(f"{word}=" for word in limits.within)
        raise ClaimError(f"{task_name}: {words} limits the tasks of a run; say it of the flow")


def uncovered(pools: Mapping[str, int], held: Mapping[str, int], holder: str) -> dict[str, int]:
    """The pools that are not held around the asker. Raises ClaimError when one is held with fewer slots than asked."""
    for name, slots in pools.items():
        if name in held and slots > held[name]:
            raise ClaimError(
                f"pool {name!r}: {slots} slots asked inside a {holder} that holds {held[name]} of it; "
                f"let the {holder} take {slots}, or ask for at most {held[name]} here"
            )
    return {name: slots for name, slots in pools.items() if name not in held}
