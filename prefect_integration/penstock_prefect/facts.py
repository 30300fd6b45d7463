"""What Prefect knows of the code that is running: read from its run contexts."""

from __future__ import annotations

import logging
from typing import Any, Literal

import prefect.runtime
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.utilities.urls import url_for

from penstock_prefect.claims import FlowFacts, Limits, TaskFacts

MARK = "__penstock_limits__"
"""The attribute of a limited function that holds its Limits."""


def running_flow(limits: Limits) -> FlowFacts | None:
    """The flow run whose own function was limited with `limits`, if that is what runs here.

    Asks the API for the deployment's name when the run belongs to one: limits may depend on it.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not _limited_by(context.flow, limits):
        return None
    run = context.flow_run
    return FlowFacts(
        flow_run_id=str(run.id),
        flow_name=context.flow.name,
        run_count=run.run_count,
        deployment_name=prefect.runtime.deployment.name if run.deployment_id is not None else None,
        work_pool_name=run.work_pool_name,
        scheduled=bool(run.auto_scheduled),
        tags=frozenset(run.tags),
        url=url_for("flow-run", obj_id=run.id),
    )


def running_task(limits: Limits) -> TaskFacts | None:
    """The task run whose own function was limited with `limits`, if that is what runs here."""
    context = TaskRunContext.get()
    if context is None or not _limited_by(context.task, limits):
        return None
    run = context.task_run
    return TaskFacts(
        task_run_id=str(run.id),
        task_name=context.task.name,
        run_count=run.run_count,
        flow_run_id=str(run.flow_run_id) if run.flow_run_id is not None else None,
        tags=frozenset(run.tags),
        url=url_for("task-run", obj_id=run.id),
    )


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
