"""Airflow's cluster policy (entry point `airflow.policy`): the gate before every task, the end behind every run.

It runs for every DAG at every parse, in the dag-processor and in every task process: it only sets attributes, and what
it sets loads the rest when it is called. Users' own hooks and callbacks are kept, after ours.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any

import pluggy

# The same marker as `airflow.policies.hookimpl`; importing that would start Airflow, which would then load this module
# half done and silently find no policy in it.
hookimpl = pluggy.HookimplMarker("airflow.policy")
GATE_MARK = "penstock_gate"


@hookimpl(trylast=True)
def task_policy(task: Any) -> None:
    """Before the task's own hook, the gate. `trylast`: whatever other policies set on the task is composed with.

    Raises TypeError for a stub under `limited`: its file's parse fails rather than that its limits count for nothing.
    """
    from penstock_airflow import compatibility, dag_objects, installation  # noqa: PLC0415  # see the module's docstring

    if not installation.store_is_configured():
        return
    if dag_objects.is_stub(task):
        from penstock_airflow import limits  # noqa: PLC0415

        # Only here is it known what stands around the task, and what a function under `limited` has become.
        limits.refuse_stub(task.task_id, limits.said_around(task))
    compatibility.after_execution(leave_gate)
    partial_kwargs = getattr(task, "partial_kwargs", None)  # a mapped operator has no hook yet: its instances get it
    if partial_kwargs is not None:
        partial_kwargs["pre_execute"] = with_gate(partial_kwargs.get("pre_execute"))
    else:
        task._pre_execute_hook = with_gate(getattr(task, "_pre_execute_hook", None))


@hookimpl(trylast=True)
def dag_policy(dag: Any) -> None:
    """At the end of each run, before the user's callbacks, its run lease is freed."""
    from penstock_airflow import installation  # noqa: PLC0415

    if not installation.store_is_configured():
        return
    for kind in ("success", "failure"):
        callbacks = getattr(dag, f"on_{kind}_callback") or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        if not any(callback is end_run for callback in callbacks):
            setattr(dag, f"on_{kind}_callback", [end_run, *callbacks])
            setattr(dag, f"has_on_{kind}_callback", True)  # all that the scheduler sees of a callback


def with_gate(hook: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """The gate, then the hook. A generator function stays one: Airflow takes what it yields as metadata of assets."""
    if hook is None:
        return enter_gate
    if hook is enter_gate or hasattr(hook, GATE_MARK):
        return hook
    user_hook = hook
    if inspect.isgeneratorfunction(user_hook):

        @functools.wraps(user_hook)
        def gated_generator(context: Any) -> Generator[Any, Any, Any]:
            enter_gate(context)
            return (yield from user_hook(context))

        setattr(gated_generator, GATE_MARK, True)
        return gated_generator

    @functools.wraps(user_hook)
    def gated(context: Any) -> Any:
        enter_gate(context)
        return user_hook(context)

    setattr(gated, GATE_MARK, True)
    return gated


# Airflow writes the source of a hook into the serialized DAG: a change of this function is a new version of every DAG.
def enter_gate(context: Any) -> None:
    """Wait for the slots of this attempt, or defer until they are free."""
    from penstock_airflow import gate  # noqa: PLC0415

    gate.enter(context)


def leave_gate(error: BaseException | None) -> None:
    """Give back what this attempt holds, or hand it on to the trigger for which it leaves the worker."""
    from penstock_airflow import holding  # noqa: PLC0415

    holding.leave(error)


def end_run(context: Any) -> None:
    """Free the lease of a run that is over."""
    from penstock_airflow import runs  # noqa: PLC0415

    runs.end(context)
