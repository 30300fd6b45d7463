"""What Prefect knows of the code that is running: read from its run contexts, without a question to its API."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any, Literal

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.utilities.urls import url_for

from penstock_prefect.claims import FlowFacts, Limits, TaskFacts

MARK = "__penstock_limits__"
"""The attribute of a limited function that holds its Limits."""
CARRIED = "penstock"
"""The key in a flow run's `context` under which tasks in other processes find what their run stands under."""


def running_flow(limits: Limits) -> FlowFacts | None:
    """The flow run whose own function was limited with `limits`, if that is what runs here."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not _limited_by(context.flow, limits):
        return None
    run = context.flow_run
    return FlowFacts(
        flow_run_id=str(run.id),
        flow_name=context.flow.name,
        flow_run_name=run.name,
        run_count=run.run_count,
        work_pool_name=run.work_pool_name,
        scheduled=bool(run.auto_scheduled),
        tags=frozenset(run.tags),
        url=url_for("flow-run", obj_id=run.id),
    )


def has_deployment() -> bool:
    """Whether the flow run that runs here belongs to a deployment."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def running_task(limits: Limits) -> TaskFacts | None:
    """The task run whose own function was limited with `limits`, if that is what runs here."""
    context = TaskRunContext.get()
    if context is None or not _limited_by(context.task, limits):
        return None
    run, around = context.task_run, FlowRunContext.get()
    within = around is not None and around.flow_run is not None and run.flow_run_id == around.flow_run.id
    return TaskFacts(
        task_run_id=str(run.id),
        task_name=context.task.name,
        task_run_name=run.name,
        run_count=run.run_count,
        flow_run_id=str(run.flow_run_id) if run.flow_run_id is not None else None,
        flow_name=around.flow.name if within and around.flow is not None else None,
        flow_run_name=around.flow_run.name if within else None,
        tags=frozenset(run.tags),
        own_tags=frozenset(context.task.tags),
        url=url_for("task-run", obj_id=run.id),
    )


def place() -> str:
    """For people: the task or flow run in which this code runs, else the process."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    names = []
    if flow is not None and flow.flow is not None and flow.flow_run is not None:
        names.append(f"{flow.flow.name}/{flow.flow_run.name}")
    if task is not None:
        names.append(task.task_run.name)
    return " ".join(names) or f"process {os.getpid()} on {socket.gethostname()}"


def flow_run_around() -> Any:
    """The flow run around the code that runs here, as Prefect's client knows it; None outside of flows."""
    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def carried() -> Mapping[str, Any] | None:
    """What `carry` left where the flow was, in whatever process Prefect has taken its context to since."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    found: Mapping[str, Any] | None = context.flow_run.context.get(CARRIED)
    return found


def carry(values: Mapping[str, Any]) -> None:
    """Leave word for the tasks of the flow that runs here: Prefect takes its run's `context` to other processes."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        context.flow_run.context[CARRIED] = dict(values)


def is_elsewhere() -> bool:
    """Whether the flow around this task runs in another process, or has run there."""
    context = FlowRunContext.get()
    return context is not None and bool(context.detached)


def cancelled_by_runner() -> bool:
    """Whether Prefect's task runner has given up the task run that runs here, as its flow was torn down.

    A runner does the same at the good end of a flow, which then waits for what still runs.
    """
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    if task is None or flow is None or flow.flow_run is None:
        return False
    # Private, and the only sign of it: where it is missing, what waits in a thread goes on until it is granted.
    event = getattr(flow.task_runner, "_cancel_events", {}).get(task.task_run.id)
    state = flow.flow_run.state
    return event is not None and bool(event.is_set()) and not (state is not None and state.is_final())


def timed_by_prefect(kind: Literal["task", "flow"]) -> bool:
    """Whether Prefect's own timeout runs around the function: so it does when `@limited` stands below the decorator."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    runnable = task.task if kind == "task" and task is not None else flow.flow if flow is not None else None
    return runnable is not None and runnable.timeout_seconds is not None


def run_logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The logger of the run that is under way, whose lines the server keeps; outside a run Penstock's own."""
    try:
        logger: logging.Logger | logging.LoggerAdapter[Any] = get_run_logger()
    except MissingContextError:
        logger = get_logger("penstock")
    return logger


def _limited_by(runnable: Any, limits: Limits) -> bool:
    # By identity: the same function may be called as a plain helper inside another limited task or flow.
    return runnable is not None and getattr(runnable.fn, MARK, None) is limits
