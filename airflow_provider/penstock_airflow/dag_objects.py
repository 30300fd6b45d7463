"""What a DAG file is made of, as far as Airflow hides it or its versions differ. Nothing loads before its use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from penstock.errors import ClaimError

Kind = Literal["task", "partial", "result", "decorated", "group", "dag", "asset", "function"]


def kind_of(target: Any) -> Kind | None:
    """What a DAG's author has in hand; None for what is no part of a DAG. A plain function may become any of them.

    `partial` is what has not been expanded yet, `result` what a call of a `@task` function gives, `decorated` such a
    function itself or one under `@task_group`.
    """
    from airflow.sdk import DAG, BaseOperator, TaskGroup  # noqa: PLC0415
    from airflow.sdk.definitions.asset.decorators import AssetDefinition, MultiAssetDefinition  # noqa: PLC0415
    from airflow.sdk.definitions.decorators.task_group import _TaskGroupFactory  # noqa: PLC0415
    from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial  # noqa: PLC0415
    from airflow.sdk.definitions.xcom_arg import PlainXComArg  # noqa: PLC0415

    kinds: list[tuple[Kind, Any]] = [
        ("task", BaseOperator | MappedOperator),
        ("partial", OperatorPartial),
        ("result", PlainXComArg),
        ("decorated", _TaskGroupFactory),
        ("group", TaskGroup),
        ("dag", DAG),
        ("asset", AssetDefinition | MultiAssetDefinition),
    ]
    for kind, classes in kinds:
        if isinstance(target, classes):
            return kind
    if getattr(target, "_airflow_is_task_decorator", False):
        return "decorated"
    return "function" if callable(target) and not inspect.isclass(target) else None


def is_stub(target: Any) -> bool:
    """Whether an operator, a mapped one or a `@task…` function is a stub: a program in another language does its work,
    and no Python of its task runs.
    """
    operator = getattr(target, "operator_class", type(target))
    # `is_stub` came after the stub itself, and a subclass may have a name of its own.
    return bool(getattr(operator, "is_stub", False)) or getattr(operator, "custom_operator_name", "") == "@task.stub"


def is_dag_factory(function: Any) -> bool:
    """Whether `@dag` made this function: it returns a DAG when it is called."""
    return getattr(function, "__globals__", {}).get("__name__") == "airflow.sdk.definitions.dag"


def group_being_defined() -> Any | None:
    """The task group, a DAG's root group included, whose body runs now; None where no DAG is being defined."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext  # noqa: PLC0415

    dag = DagContext.get_current()
    return TaskGroupContext.get_current(dag) if dag is not None else None


@functools.cache
def hide_from_source(*decorators: str) -> None:
    """Leave these decorators out where Airflow takes a task's function over as text (`@task.virtualenv` and others).

    Airflow leaves out its own by the same function. Where that is gone, such a task fails with a NameError that names
    the decorator.
    """
    from airflow.sdk.bases import decorator  # noqa: PLC0415

    remove = getattr(decorator, "remove_task_decorator", None)
    if remove is None:
        return

    @functools.wraps(remove)
    def remove_ours_too(python_source: str, task_decorator_name: str) -> Any:
        for name in decorators:
            if f"@{name}" in python_source:
                python_source = remove(python_source, name)
        return remove(python_source, task_decorator_name)

    decorator.remove_task_decorator = remove_ours_too


def function_of(task: Any) -> Any:
    """The function that a task runs (`@task` in all its forms, `@asset`, PythonOperator); None where it has none."""
    function = getattr(task, "python_callable", None)
    if function is None and (partial_kwargs := getattr(task, "partial_kwargs", None)) is not None:
        function = partial_kwargs.get("python_callable")
    while isinstance(function, functools.partial):
        function = function.func
    return function


def rendered(task: Any, text: str, context: Mapping[str, Any]) -> str:
    """The text as the task's own template environment renders it: as text, even where the DAG renders to objects."""
    try:
        template = task.get_template_env(task.dag).from_string(text)
        environment = template.environment
        names = {**template.globals, **context}
        nodes = template.root_render_func(environment.context_class(environment, names, template.name, template.blocks))
        return "".join(map(str, nodes))
    except Exception as error:
        raise ClaimError(f"{text!r} of limited(…) cannot be rendered: {error}") from error


def arguments_of(task: Any) -> dict[str, Any]:
    """The arguments with which the task's function will be called, by name; {} for a task without one."""
    function = function_of(task)
    if function is None:
        return {}
    try:
        bound = inspect.signature(function).bind_partial(*(task.op_args or ()), **(task.op_kwargs or {}))
    except (AttributeError, TypeError, ValueError):  # no such arguments, or ones that Airflow will refuse in a moment
        return {}
    bound.apply_defaults()
    return dict(bound.arguments)
