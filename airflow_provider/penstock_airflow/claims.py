"""From the facts of a task instance to its claims. Pure: no store, no configuration is read here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from penstock.claim import Claim, ClaimKind, parse_tag

from penstock_airflow.limits import Limits, RunLimits

HOST = "airflow"
DEFAULT_POOL = "default_pool"
DEFAULT_PRIORITY_WEIGHT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What a claim is made of. `map_index` -1 is a task that is not mapped; `url` is the task instance's page."""

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
        dag_tags=tuple(sorted(task.dag.tags or ())),
        task_group=getattr(group, "group_id", None),
        owner=task.owner,
        operator=task.task_type,
        queue=task.queue,
        run_type=getattr(run_type, "value", run_type),
        triggering_user=getattr(dag_run, "triggering_user_name", None),
        conf=getattr(dag_run, "conf", None) or {},
        params=context.get("params") or {},
        url=ti.log_url,
    )


def run_id(dag_id: str, dag_run_id: str) -> str:
    """How a DAG run is called in the store."""
    return f"{dag_id}/{dag_run_id}"


def run_claim(facts: TaskFacts, said: RunLimits, *, deployment: str, run_tag_keys: Iterable[str] = ()) -> Claim:
    """The claim of the whole DAG run, the same from each of its tasks."""
    tags = _dag_tags(facts) | _known({"dag_id": facts.dag_id, "run_type": facts.run_type})
    tags |= _known({"triggering_user": facts.triggering_user})
    for key in run_tag_keys:
        value = facts.conf.get(key, facts.params.get(key))
        if value is not None:
            tags[key] = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return Claim(
        kind=ClaimKind.RUN,
        host=HOST,
        deployment=deployment,
        run_id=run_id(facts.dag_id, facts.run_id),
        pools=said.pools,
        tags=tags | dict(said.tags),
        priority=said.priority or 0,
        within=said.within,
        url=_run_url(facts),
    )


def op_claim(
    facts: TaskFacts, said: Limits, *, deployment: str, limited: Collection[str], globs: Collection[str] = ()
) -> Claim:
    """The claim of one attempt of a task instance.

    `limited` names the pools with an explicit limit in the store. A task's `pool` counts when it is one of these or
    matches a glob. Raises ClaimError when such a pool's name cannot be one in Penstock (whitespace, `:digits` at the
    end).
    """
    counts = facts.pool in limited or _matches(facts.pool, globs)
    own = {"dag_id": facts.dag_id, "task_id": facts.task_id, "task_group": facts.task_group}
    own |= {"owner": facts.owner, "operator": facts.operator, "queue": facts.queue}
    return Claim(
        kind=ClaimKind.OP,
        host=HOST,
        deployment=deployment,
        run_id=run_id(facts.dag_id, facts.run_id),
        op_id=facts.task_id if facts.map_index < 0 else f"{facts.task_id}[{facts.map_index}]",
        attempt=facts.try_number,
        pools={**({facts.pool: facts.pool_slots} if counts else {}), **said.pools},
        tags=_dag_tags(facts) | _known(own) | dict(said.tags),
        # Airflow's weight of a task that says nothing is 1, everybody else's priority then is 0.
        priority=facts.priority_weight - DEFAULT_PRIORITY_WEIGHT if said.priority is None else said.priority,
        url=facts.url,
        in_run=True,
    )


def _matches(pool: str, globs: Collection[str]) -> bool:
    """Every task that names no pool is in `default_pool`: a glob of stars alone does not mean it."""
    return any(fnmatchcase(pool, glob) for glob in globs if pool != DEFAULT_POOL or glob.strip("*"))


def _dag_tags(facts: TaskFacts) -> dict[str, str]:
    return dict(map(parse_tag, facts.dag_tags))


def _known(values: Mapping[str, str | None]) -> dict[str, str]:
    return {f"airflow/{key}": value for key, value in values.items() if value}


def _run_url(facts: TaskFacts) -> str | None:
    """The run's page, which is the beginning of the task instance's."""
    page = f"/dags/{facts.dag_id}/runs/{quote(facts.run_id)}"
    base, found, _ = (facts.url or "").partition(page + "/")
    return base + page if found else None
