"""All that reaches behind Airflow's public face or differs between its versions. Nothing loads before its use."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

RESUME_METHOD = "penstock_resume"
ANSWER_SECONDS = 30.0
FAIL_METHOD = "__fail__"  # Airflow's own next_method for a task whose trigger failed: no code of the task runs then


def configuration() -> Any:
    """Airflow's configuration parser."""
    from airflow.configuration import conf  # noqa: PLC0415  # the policy module must stay light

    return conf


def task_deferred(**facts: Any) -> Any:
    """The exception by which a task defers: its home moved to the SDK after 3.1."""
    try:
        from airflow.sdk.exceptions import TaskDeferred  # noqa: PLC0415
    except ImportError:
        from airflow.exceptions import TaskDeferred  # noqa: PLC0415
    return TaskDeferred(**facts)


@functools.cache
def after_execution(call: Callable[[], None]) -> bool:
    """Have `call` called when an attempt in this process has executed. False if this Airflow has no place for that.

    The place is `_execute_task` of the task runner: all of an attempt that is the task's own runs inside it (hooks
    before and after, execute or the resumed method), and it is left exactly once, whether by return, error, skip,
    deferral, reschedule or a wait for input. No public place is as good: post-execute hooks run on success alone; state
    callbacks not on deferral, and only after the state was reported; listeners make Airflow reject DAGs that use
    `end_from_trigger`; `execute` is bound before the first hook runs, so that a hook comes too late to wrap it, and a
    mapped operator has no instance earlier. Where the name is gone, slots come back by expiry, and the gate says so.
    """
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415  # loaded already wherever tasks run or are parsed

    execute = getattr(task_runner, "_execute_task", None)
    if execute is None:
        return False

    @functools.wraps(execute)
    def execute_then_call(*args: Any, **kwargs: Any) -> Any:
        try:
            return execute(*args, **kwargs)
        finally:
            call()

    task_runner._execute_task = execute_then_call
    return True


def run_is_alive(dag_id: str, dag_run_id: str, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the run exists and is not over, as the execution API says. For any thread of a triggerer but its loop's.

    `loop` is the triggerer's: what asks from elsewhere reads answers that are not its own, and Airflow 3.1 then ends
    the whole triggerer ("Response read out of order!").
    """
    from airflow.sdk.execution_time import comms, task_runner  # noqa: PLC0415

    question = comms.GetDRCount(dag_id=dag_id, run_ids=[dag_run_id], states=["queued", "running"])
    asked = asyncio.run_coroutine_threadsafe(task_runner.SUPERVISOR_COMMS.asend(question), loop)
    count: int = asked.result(ANSWER_SECONDS).count
    return count > 0


def only_fails(ti: Any) -> bool:
    """Whether this attempt was started only to report that its trigger failed."""
    return _next_method(ti) == FAIL_METHOD


def interrupted_call(ti: Any) -> dict[str, Any]:
    """What `resume` needs to go on where the gate interrupts this attempt; {} for a plain execute.

    The arguments that a self-deferring operator is resumed with are kept as text: Airflow's serializer would take the
    encoded dictionary apart.
    """
    method = _next_method(ti)
    if method is None:
        return {}
    arguments = ti._ti_context_from_server.next_kwargs or {}
    if method != RESUME_METHOD:
        return {"method": method, "arguments": json.dumps(arguments)}
    return {key: value for key, value in _decoded(arguments).items() if key in ("method", "arguments")}


def deferred_since(ti: Any) -> float | None:
    """When the wait began that this attempt comes back from, in seconds since 1970; None when it does not."""
    if _next_method(ti) != RESUME_METHOD:
        return None
    since: float | None = _decoded(ti._ti_context_from_server.next_kwargs or {}).get("since")
    return since


def let_resume(task: Any) -> None:
    """Give this task object the method that Airflow calls when our trigger has fired. Not serialized, not inherited."""
    setattr(task, RESUME_METHOD, functools.partial(_resume, task))


def _resume(
    task: Any,
    context: Any,
    event: Any = None,
    since: float | None = None,  # read before, by `deferred_since`
    method: str | None = None,
    arguments: str | None = None,
) -> Any:
    """Do what the gate had interrupted."""
    if method is None:
        return task.execute(context=context)
    return task.resume_execution(method, _decoded(json.loads(arguments or "{}")), context)


def _next_method(ti: Any) -> str | None:
    from_server = getattr(ti, "_ti_context_from_server", None)
    method: str | None = from_server.next_method if from_server is not None else None
    return method


def _decoded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As the task runner itself decodes `next_kwargs`: the SDK's encoding, else the older one."""
    try:
        from airflow.sdk.serde import deserialize  # noqa: PLC0415

        decoded: dict[str, Any] = deserialize(arguments)
    except (ImportError, KeyError, AttributeError, TypeError):
        from airflow.serialization.serialized_objects import BaseSerialization  # noqa: PLC0415

        decoded = BaseSerialization.deserialize(arguments)
    return decoded
