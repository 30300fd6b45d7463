"""What the DAG's author said of a task and of its run, as the gate reads it: merged, and with templates rendered.

It stands on the objects of the DAG file: on operators, the functions of tasks, task groups, the DAG. Every task process
parses that file again, so it is there without being serialized, and a change of it is no new version of the DAG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.claim import PoolsLike, check_pool_name, parse_pool, parse_pools
from penstock.errors import ClaimError
from penstock.settings import OnBlocked

from penstock_airflow import dag_objects
from penstock_airflow.said import Said, is_template, known_only, said_in_conf

MARK = "penstock_limited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What was said of one task, templates rendered, what its task groups say merged in.

    `priority` None: Airflow's priority_weight counts. `wait_timeout_seconds` None waits for ever. `exempt`: the task is
    not limited at all.
    """

    pools: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    on_blocked: OnBlocked = "wait"
    wait_timeout_seconds: float | None = None
    exempt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What was said of a DAG and in its run's `conf["penstock"]`, templates rendered.

    `within`: the run's own limits on its ops, in the form of the configuration's `ops` block; None leaves those.
    """

    pools: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    on_blocked: OnBlocked = "wait"
    wait_timeout_seconds: float | None = None
    within: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asks:
    """What is known of one task of a DAG without running it: its Airflow pool, and the pools named by no template.

    `waits` False: blocked, it is skipped or fails.
    """

    pool: str
    pool_slots: int
    pools: Mapping[str, int] = field(default_factory=dict)
    is_root: bool = False
    waits: bool = True


def of_task(context: Mapping[str, Any]) -> Limits:
    """What was said of the task of this context. Raises ClaimError where a template gives something unusable.

    Templates are rendered by the task's own environment, and see the arguments of the task's function besides Airflow's
    context: `"table_{{ table }}"` is a pool for each value over which a task is mapped.
    """
    task = context["task"]
    said = list(said_around(task))
    run_said = getattr(task.dag, MARK, None)
    exempt = any(one.exempt for one in said) or (run_said is not None and run_said.exempt)
    if exempt or not said:
        return Limits(exempt=exempt)
    render = _renderer(task, {**dag_objects.arguments_of(task), **context})
    pools: dict[str, int] = {}
    tags: dict[str, str] = {}
    for one in said:
        pools |= _rendered_pools(one, render)
        tags |= {render(key): render(value) for key, value in one.tags.items()}
    return Limits(
        pools=pools,
        tags=tags,
        priority=_rendered_priority(_innermost(one.priority for one in said), render),
        **_when_blocked(said),
    )


def of_run(context: Mapping[str, Any]) -> RunLimits:
    """What was said of the run of this context. Raises ClaimError where a template or the conf says something unusable.

    What the conf says comes before what the DAG says. Nothing in a conf is taken for a template: whoever may start a
    run need not be somebody who may write code.
    """
    dag, task = context["dag"], context["task"]
    in_conf = said_in_conf(getattr(context.get("dag_run"), "conf", None))
    of_dag = getattr(dag, MARK, None) or Said()
    render = _renderer(task, context)
    said = [of_dag, in_conf]
    within = {**(of_dag.within or {}), **(in_conf.within or {})}
    return RunLimits(
        pools={**_rendered_pools(of_dag, render), **parse_pools(in_conf.pools)},
        tags={**{render(key): render(value) for key, value in of_dag.tags.items()}, **in_conf.tags},
        priority=_rendered_priority(_innermost(one.priority for one in said), render),
        within=within or None,
        **_when_blocked(said),
    )


def asks_of(dag: Any) -> tuple[Asks, ...]:
    """What the tasks of a DAG ask for, as far as it is known before they run; without those that are exempt."""
    of_dag = getattr(dag, MARK, None)
    if of_dag is not None and of_dag.exempt:
        return ()
    asks = []
    for task in dag.tasks:
        said = list(said_around(task))
        if any(one.exempt for one in said):
            continue
        pools: dict[str, int] = {}
        for one in said:
            pools |= parse_pools(known_only(one.pools))
        is_root = not task.upstream_task_ids
        waits = _when_blocked(said)["on_blocked"] == "wait"
        asks.append(Asks(pool=task.pool, pool_slots=task.pool_slots, pools=pools, is_root=is_root, waits=waits))
    return tuple(asks)


def said_around(task: Any) -> Iterator[Said]:
    """What was said of the task groups around a task, outermost first, then of the task itself."""
    groups = []
    group = getattr(task, "task_group", None)
    while group is not None and not group.is_root:
        groups.append(group)
        group = group.parent_group
    for around in reversed(groups):
        if (said := getattr(around, MARK, None)) is not None:
            yield said
    if (said := said_of(task)) is not None:
        if said.within is not None:
            words = " and ".join(f"{word}=" for word in said.within)
            raise ClaimError(f"{task.task_id}: {words} limits the tasks of a run; say it of the DAG")
        yield said


def refuse_stub(name: object, said: Iterable[Said]) -> None:
    """Raises TypeError where anything is said of a stub but that it is exempt."""
    said = list(said)
    if said and not any(one.exempt for one in said):
        raise TypeError(
            f"{name} is a @task.stub: it runs outside Python, where no gate stands before it, so limited(…) would "
            "limit nothing; limit it by Airflow's own pool= and pool_slots=, or have a Python task do the work. One in "
            "a limited group goes with limited(exempt=True)"
        )


def said_of(task: Any) -> Said | None:
    """What was said of the operator, or of the function that it runs."""
    said: Said | None = getattr(task, MARK, None)
    if said is None and (dag := task.get_dag()) is not None:
        # The operator that a mapped one becomes in the worker is another object; the DAG still has the mapped one.
        said = getattr(dag.task_dict.get(task.task_id), MARK, None)
    return said or getattr(dag_objects.function_of(task), MARK, None)


def _rendered_pools(said: Said, render: Callable[[str], str]) -> dict[str, int]:
    rendered: list[PoolsLike] = []
    for item in said.pools:
        if isinstance(item, Mapping):
            rendered += [{check_pool_name(render(name)): _rendered_slots(name, item[name], render)} for name in item]
        else:
            rendered.append(dict([parse_pool(render(item))]))
    return parse_pools(rendered)


def _rendered_slots(name: str, slots: int | str, render: Callable[[str], str]) -> int:
    if isinstance(slots, int):
        return slots
    text = render(slots).strip()
    if not text.isdecimal() or int(text) < 1:
        raise ClaimError(f"pool {name!r}: {slots!r} gives {text!r} slots; a whole number of at least 1 is expected")
    return int(text)


def _rendered_priority(priority: int | str | None, render: Callable[[str], str]) -> int | None:
    if not isinstance(priority, str):
        return priority
    text = render(priority).strip()
    try:
        return int(text)
    except ValueError:
        raise ClaimError(f"priority={priority!r} gives {text!r}; a whole number is expected") from None


def _renderer(task: Any, context: Mapping[str, Any]) -> Callable[[str], str]:
    """How a text of the author becomes plain text. What holds no template never reaches the template engine."""

    def render(text: str) -> str:
        return dag_objects.rendered(task, text, context) if is_template(text) else text

    return render


def _innermost(values: Iterable[Any]) -> Any:
    """The last of these that was said."""
    return next((value for value in reversed(list(values)) if value is not None), None)


def _when_blocked(said: Iterable[Said]) -> dict[str, Any]:
    """`on_blocked` and the time-out, each as the innermost has it; a time-out belongs to waiting alone."""
    said = list(said)
    on_blocked = _innermost(one.on_blocked for one in said) or "wait"
    timeout = _innermost(one.wait_timeout_seconds for one in said) if on_blocked == "wait" else None
    return {"on_blocked": on_blocked, "wait_timeout_seconds": timeout}
