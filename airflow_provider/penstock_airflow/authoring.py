"""`limited`: how a DAG's author puts tasks, task groups and DAGs under limits. Only DAG files load this module."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, TypeVar

from penstock.claim import PoolsLike
from penstock.errors import ClaimError
from penstock.settings import OnBlocked

from penstock_airflow import dag_objects
from penstock_airflow.limits import MARK, refuse_stub, said_of
from penstock_airflow.said import Said

Limitable = TypeVar("Limitable")
_PLACES = (
    "put it above or below @task, @task_group, @dag and @asset, or around an operator, a TaskGroup or a DAG: "
    'limited("database")(BashOperator(…))'
)


def limited(
    *pools: PoolsLike,
    slots: int | str | None = None,
    tags: Mapping[str, str] | None = None,
    priority: int | str | None = None,
    on_blocked: OnBlocked | None = None,
    wait_timeout_seconds: float | None = None,
    exempt: bool = False,
    max_concurrent: int | None = None,
    tag_concurrency_limits: Sequence[Mapping[str, Any]] | None = None,
) -> Callable[[Limitable], Limitable]:
    """Put a task, a task group or a DAG under limits.

    On a task: each attempt takes its slots of all the pools before it starts, and gives them back when it ends. On a
    task group: so does each task in it; what is said of an inner group or of the task itself comes before that. On a
    DAG: its run takes the pools once for its whole life, `tags` are run tags, and `max_concurrent` and
    `tag_concurrency_limits` (as in the configuration's `ops` block) limit the tasks of one run, in place of the
    configured ones.

    Pools are `"name"`, `"name:slots"`, `{"name": slots}`, several of these, or one name with `slots=`. Pools, slots,
    tags and priority may be templates, rendered when the task is about to run: `"table_{{ params.table }}"`. Those of a
    task also see the arguments of its function. `priority`: each step is worth a minute of waiting; not said, the
    task's `priority_weight` counts. `on_blocked`: "wait" (the default; up to `wait_timeout_seconds`, then the task
    fails), "skip" (the task, or each task of the run, is skipped) or "fail". `exempt`: not limited at all.

    Raises ClaimError on words that can never be right, TypeError on what cannot be limited.
    """
    if len(pools) == 1 and not isinstance(pools[0], str | Mapping) and callable(pools[0]):
        raise TypeError(f"@limited says nothing; name a pool: @limited('database'), and {_PLACES}")
    within = {"max_concurrent": max_concurrent, "tag_concurrency_limits": tag_concurrency_limits}
    within = {word: value for word, value in within.items() if value is not None}
    said = Said(
        pools=_with_slots(pools, slots),
        tags=dict(tags or {}) if isinstance(tags, Mapping | None) else tags,
        priority=priority,
        on_blocked=on_blocked,
        wait_timeout_seconds=wait_timeout_seconds,
        exempt=exempt,
        within=within or None,
    )
    if said == Said():
        raise ClaimError("limited() says nothing; name a pool, or leave it out: configured limits count without it")
    if exempt and said != Said(exempt=True):
        raise ClaimError("exempt=True leaves the task without any limit; leave out everything else, or leave it out")
    return functools.partial(_limit, said=said)


def _with_slots(pools: tuple[PoolsLike, ...], slots: int | str | None) -> tuple[PoolsLike, ...]:
    if slots is None:
        return pools
    if len(pools) != 1 or not isinstance(pools[0], str):
        raise ClaimError(f"slots={slots} belongs to one pool, {len(pools)} are named; write 'name:slots' for each")
    return ({pools[0]: slots},)  # type: ignore[dict-item]  # slots may be a template


def _limit(target: Any, said: Said) -> Any:
    """The target under limits: operators, groups and DAGs as they are, decorated functions as copies."""
    if dag_objects.is_stub(target):
        name = getattr(target, "task_id", None) or getattr(getattr(target, "function", None), "__name__", target)
        refuse_stub(name, [said])
    match dag_objects.kind_of(target):
        case "task":
            _no_run_words(said, target.task_id)
            if said_of(target) is not None:
                raise _twice(target.task_id)
            setattr(target, MARK, said)
        case "result":
            _limit(target.operator, said)
        case "group" | "dag":
            _mark_around(target, said)
        case "asset":  # its DAG and its task exist already, and the task runs this very function
            function = getattr(target._function, "function", target._function)
            _no_run_words(said, function.__name__)
            if hasattr(function, MARK):
                raise _twice(function.__name__)
            setattr(function, MARK, said)
        case "decorated":
            decorated = target.override()
            decorated.function = decorated.__wrapped__ = _limited_function(target.function, said)
            return decorated
        case "function":
            return _limited_function(target, said)
        case "partial":
            raise TypeError(f"{target!r} is no task yet; put limited(…) around the result of its expand()")
        case None:
            raise TypeError(f"limited takes no {type(target).__name__} ({target!r}); {_PLACES}")
    return target


def _limited_function(function: Any, said: Said) -> Any:
    """A copy of the function under limits, whatever will decorate it: the mark is read where a task's function is."""
    if hasattr(function, MARK):
        raise _twice(function.__name__)
    if not isinstance(function, FunctionType):
        function = copy.copy(function)
        try:
            setattr(function, MARK, said)
        except AttributeError:
            raise TypeError(f"{function!r} takes no attributes, so it cannot be limited; wrap it in a def") from None
        return function
    limited_function = _copy(function)
    if dag_objects.is_dag_factory(function):
        limited_function = _dag_factory(function, said)
    elif not inspect.isgeneratorfunction(function) and not inspect.iscoroutinefunction(function):
        limited_function = _body(function, said)
    setattr(limited_function, MARK, said)
    return limited_function


def _dag_factory(function: Any, said: Said) -> Any:
    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> Any:
        dag = function(*args, **kwargs)
        _mark_around(dag, said)
        return dag

    return factory


def _body(function: Any, said: Said) -> Any:
    """The function of a task, a group or a DAG: nothing tells which. Called where a DAG is defined, it is no task's."""

    @functools.wraps(function)
    def body(*args: Any, **kwargs: Any) -> Any:
        group = dag_objects.group_being_defined()
        if group is not None:
            if group.children:
                raise TypeError(f"{function.__name__} is under @limited and is called as a plain function; {_PLACES}")
            _mark_around(group.dag if group.is_root else group, said)
        return function(*args, **kwargs)

    return body


def _copy(function: FunctionType) -> FunctionType:
    copied = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copied, function)
    return copied


def _mark_around(target: Any, said: Said) -> None:
    """Say it of a task group or a DAG."""
    name = target.group_id if (is_group := hasattr(target, "group_id")) else target.dag_id
    if is_group:
        _no_run_words(said, name)
    if hasattr(target, MARK):
        raise _twice(name)
    setattr(target, MARK, said)


def _no_run_words(said: Said, name: str | None) -> None:
    if said.within is not None:
        words = " and ".join(f"{word}=" for word in said.within)
        raise TypeError(f"{name}: {words} limits the tasks of a run; say it of the DAG")


def _twice(name: object) -> TypeError:
    return TypeError(f"{name} is under limited(…) already; say everything in one")


# What runs elsewhere as text has no Penstock there.
dag_objects.hide_from_source("limited", "penstock_airflow.limited")
