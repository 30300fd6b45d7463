"""From the facts of a task instance to its claims. Pure: no store, no configuration is read here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from penstock.claim import PRIORITY_MAX, Claim, ClaimKind, parse_tag
from penstock.config import Concurrency, Granularity

from penstock_airflow.limits import Asks, Limits, RunLimits, asks_of

HOST = "airflow"
DEFAULT_POOL = "default_pool"
DEFAULT_PRIORITY_WEIGHT = 1
NO_LIMITS, NO_RUN_LIMITS = Limits(), RunLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What a claim is made of. `map_index` -1 is a task that is not mapped; `url` is the task instance's page.

    `map_name` is how the DAG names the index for people. `asks`: what each task of the DAG is known to ask for.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int = 1
    pool: str = DEFAULT_POOL
    pool_slots: int = 1
    priority_weight: int = DEFAULT_PRIORITY_WEIGHT
    dag_tags: tuple[str, ...] = ()
    task_group: str | None = None
    owner: str | None = None
    operator: str | None = None
    queue: str | None = None
    run_type: str | None = None
    triggering_user: str | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None
    map_name: str | None = None
    asks: tuple[Asks, ...] = ()


def facts_of(context: Mapping[str, Any]) -> TaskFacts:
    """The facts as Airflow's task context has them, once templates are rendered and a mapped task is expanded."""
    ti, task, dag_run = context["ti"], context["task"], context.get("dag_run")
    group = getattr(task, "task_group", None)
    run_type = getattr(dag_run, "run_type", None)
    return TaskFacts(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        pool=task.pool,
        pool_slots=task.pool_slots,
        priority_weight=task.priority_weight,
        dag_tags=tuple(task.dag.tags or ()),
        task_group=getattr(group, "group_id", None),
        owner=task.owner,
        operator=task.task_type,
        queue=task.queue,
        run_type=getattr(run_type, "value", run_type),
        triggering_user=getattr(dag_run, "triggering_user_name", None),
        conf=getattr(dag_run, "conf", None) or {},
        params=context.get("params") or {},
        url=ti.log_url,
        map_name=getattr(ti, "rendered_map_index", None),
        asks=asks_of(task.dag),
    )


def run_id(dag_id: str, dag_run_id: str) -> str:
    """How a DAG run is called in the store."""
    return f"{dag_id}/{dag_run_id}"


def run_claim(
    facts: TaskFacts,
    limits: RunLimits = NO_RUN_LIMITS,
    *,
    deployment: str,
    concurrency: Concurrency,
    globs: Collection[str] = (),
    run_tag_keys: Iterable[str] = (),
) -> Claim:
    """The claim of the whole DAG run, the same from each of its tasks.

    It takes the pools that the DAG declares, and those of run granularity that its tasks ask for, as far as the DAG
    tells: the most slots that any of them asks. Raises ClaimError as `op_claim`.
    """
    pools = dict(limits.pools)
    for ask in facts.asks:
        for name, slots in _asked(ask.pool, ask.pool_slots, ask.pools, concurrency, globs).items():
            if concurrency.pool_granularity(name) is Granularity.RUN:
                pools[name] = max(slots, pools.get(name, 0))
    tags = tags_of_dag(facts.dag_tags)[0]
    for key in run_tag_keys:
        value = facts.conf.get(key, facts.params.get(key))
        if value is not None:
            tags[key] = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    own = {"dag_id": facts.dag_id, "run_type": facts.run_type, "triggering_user": facts.triggering_user}
    # A task is told no more of its backfill; of one DAG Airflow lets only one be active, so this names it.
    own |= {"backfill_id": facts.dag_id if facts.run_type == "backfill" else None}
    return Claim(
        kind=ClaimKind.RUN,
        host=HOST,
        deployment=deployment,
        run_id=run_id(facts.dag_id, facts.run_id),
        pools=pools,
        tags=tags | dict(limits.tags) | _known(own),
        priority=_bounded(limits.priority or 0),
        url=_run_url(facts),
        within=limits.within,
        roots=_root_pools(facts, concurrency, globs),
    )


def op_claim(
    facts: TaskFacts,
    limits: Limits = NO_LIMITS,
    *,
    deployment: str,
    concurrency: Concurrency,
    globs: Collection[str] = (),
    run_priority: int = 0,
) -> Claim:
    """The claim of one attempt of a task instance.

    A task's Airflow `pool` counts when it has a limit of its own in the store or matches a glob; the pools of `limits`
    always do, and come before it. Raises ClaimError when a pool's name cannot be one in Penstock (whitespace,
    `:digits` at the end).
    """
    own = {"dag_id": facts.dag_id, "task_id": facts.task_id, "task_group": facts.task_group}
    own |= {"owner": facts.owner, "operator": facts.operator, "queue": facts.queue}
    # Airflow's weight of a task that says nothing is 1, everybody else's priority then is 0.
    priority = facts.priority_weight - DEFAULT_PRIORITY_WEIGHT if limits.priority is None else limits.priority
    return Claim(
        kind=ClaimKind.OP,
        host=HOST,
        deployment=deployment,
        run_id=run_id(facts.dag_id, facts.run_id),
        op_id=facts.task_id if facts.map_index < 0 else f"{facts.task_id}[{facts.map_index}]",
        attempt=facts.try_number,
        pools=_asked(facts.pool, facts.pool_slots, limits.pools, concurrency, globs),
        tags=tags_of_dag(facts.dag_tags)[0] | dict(limits.tags) | _known(own),
        priority=_bounded(priority + run_priority),
        url=facts.url,
        in_run=True,
        name=_op_name(facts),
        step=_step(facts),
    )


def tags_of_dag(tags: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The tags of a DAG as a claim has them, and those left out: of several with one key the first in order counts."""
    known: dict[str, str] = {}
    ignored = []
    for tag in sorted(tags):
        key, value = parse_tag(tag)
        if known.setdefault(key, value) != value:
            ignored.append(tag)
    return known, tuple(ignored)


def _root_pools(facts: TaskFacts, concurrency: Concurrency, globs: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The pools of the tasks with which the run begins, alike ones once; empty when one can go on without any room."""
    roots = {
        tuple(_asked(ask.pool, ask.pool_slots, ask.pools, concurrency, globs)) if ask.waits else ()
        for ask in facts.asks
        if ask.is_root
    }
    return tuple(sorted(roots)) if all(roots) else ()


def _asked(
    pool: str, pool_slots: int, pools: Mapping[str, int], concurrency: Concurrency, globs: Collection[str]
) -> dict[str, int]:
    native = {pool: pool_slots} if pool in concurrency.pools.limits or _matches(pool, globs) else {}
    return native | dict(pools)


def _step(facts: TaskFacts) -> str:
    """`dag_id.task_id`; `dag_id/task_id` where the DAG's id has a dot: the ids of tasks in groups have some, too."""
    return f"{facts.dag_id}{'/' if '.' in facts.dag_id else '.'}{facts.task_id}"


def _op_name(facts: TaskFacts) -> str:
    """How people know the op: a mapped one by the name that the DAG gives its index (`map_index_template`)."""
    index = "" if facts.map_index < 0 else f"[{facts.map_name or facts.map_index}]"
    return f"{run_id(facts.dag_id, facts.run_id)} {facts.task_id}{index}"


def _bounded(priority: int) -> int:
    return max(-PRIORITY_MAX, min(PRIORITY_MAX, priority))


def _matches(pool: str, globs: Collection[str]) -> bool:
    """Every task that names no pool is in `default_pool`: a glob of stars alone does not mean it."""
    return any(fnmatchcase(pool, glob) for glob in globs if pool != DEFAULT_POOL or glob.strip("*"))


def _known(values: Mapping[str, str | None]) -> dict[str, str]:
    return {f"airflow/{key}": value for key, value in values.items() if value}


def _run_url(facts: TaskFacts) -> str | None:
    """The run's page, which is the beginning of the task instance's."""
    page = f"/dags/{facts.dag_id}/runs/{quote(facts.run_id)}"
    base, found, _ = (facts.url or "").partition(page + "/")
    return base + page if found else None
