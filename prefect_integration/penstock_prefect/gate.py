"""The gate around one attempt of a task or flow, and around a `slots` block: what runs here, and what it must claim.

The way of a claim: `limited` puts a function behind its `wrapping`, whose call comes to this `gate`; what is known of
the run (`facts`) becomes a claim and a standing by the pure functions of `claims`. A `Passage` takes it through
`engine.request`, the `Request` that waits and the store's `acquire`, which is one statement, and back again.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from penstock.errors import Skipped, StoreUnavailable
from penstock.store.contract import ClaimState
from prefect.exceptions import Pause, PrefectException

from penstock_prefect import adoption, asking, claims, facts, installation
from penstock_prefect.attempts import Attempt, Kind, standing_here
from penstock_prefect.claims import Limits, Standing
from penstock_prefect.giving_up import left_behind, torn_down
from penstock_prefect.passage import Passage, run_lives

if TYPE_CHECKING:
    import logging

    from penstock.claim import Claim
    from penstock.engine import Engine

    from penstock_prefect.claims import FlowFacts, TaskFacts

_subflows: dict[tuple[int, str], Standing] = {}  # of this process's pool, which ends with its flow
_subflows_lock = threading.Lock()
T = TypeVar("T")
THREADS = 4
"""In which async attempts look for what they must claim. The loop's own may all be busy waiting for a slot."""


@contextmanager
def attempt(limits: Limits) -> Iterator[Attempt]:
    """Hold what `limits` asks for the length of the block.

    Raises as Engine.acquire, and CancelledError when the flow around it is torn down during the wait. A task or flow
    that shall be skipped when blocked comes out marked so; anywhere else Skipped is raised.
    """
    passage = _passage(limits)
    try:
        yield passage.acquire()
    except Pause as pause:
        passage.leave_suspended(pause.state)
        raise
    finally:
        passage.give_back()


@asynccontextmanager
async def attempt_async(limits: Limits) -> AsyncIterator[Attempt]:
    """As `attempt`, without blocking the event loop during the wait."""
    # Connecting and asking for the deployment's name are I/O.
    passage = await off_loop(partial(_passage, limits))
    try:
        yield await passage.acquire_async()
    except Pause as pause:
        await passage.off_loop(partial(passage.leave_suspended, pause.state))
        raise
    finally:
        await passage.give_back_async()


async def off_loop(work: Callable[[], T]) -> T:
    """Do the work in a thread, which sees this task's context."""
    return await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), copy_context().run, work)


@functools.cache
def _threads(_process_id: int) -> ThreadPoolExecutor:
    """Those of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="penstock-gate")


def _passage(limits: Limits) -> Passage:
    """Find out what runs here and what it must claim."""
    logger, engine = facts.run_logger(), installation.engine()
    flow, task = facts.running_flow(limits), facts.running_task(limits)
    kind: Kind = "task" if task is not None else "flow" if flow is not None else "block"
    if engine is None or engine.settings.enforcement == "off":
        if engine is not None:
            _say_off(os.getpid())
        return Passage(None, limits, logger, kind, standing_here(), lambda standing: (None, standing))
    outer = standing_here() if flow is not None else _outer(engine)
    refused: Skipped | None = None
    if outer is claims.NOWHERE:
        try:
            outer = adoption.standing(engine, limits)
        except Skipped as error:
            refused = error
    if flow is not None and outer.run_id is not None:
        kind = "subflow"
        if limits.within is not None:
            logger.warning("The limits on the tasks of this run are those of its outermost limited flow")
    if task is not None:
        _warn_of_tags(logger, claims.op_tags(task)[1])
    elif flow is not None and kind == "flow":
        if facts.has_deployment():
            flow = replace(flow, deployment_name=asking.deployment_name())
        _warn_of_tags(logger, claims.run_tags(flow)[1])
    claimed = partial(_claimed, task, flow, limits, engine.deployment)
    return Passage(engine, limits, logger, kind, outer, claimed, refused=refused)


@functools.cache
def _say_off(_process_id: int) -> None:
    facts.run_logger().info("Penstock: enforcement is off, nothing is limited")


def _claimed(
    task: TaskFacts | None, flow: FlowFacts | None, limits: Limits, deployment: str, outer: Standing
) -> tuple[Claim | None, Standing]:
    if task is not None:
        return claims.task_claim(task, limits, deployment, outer)
    if flow is None:
        return claims.block_claim(limits, deployment, outer, facts.place())
    if outer.run_id is not None:
        return claims.subflow_claim(flow, limits, deployment, outer)
    return claims.run_claim(flow, limits, deployment)


def _outer(engine: Engine) -> Standing:
    """What the code that runs here stands under, though its flow run in another process.

    Where that run's lease is over, a task of its process pool has been left behind; one that a task worker has taken
    over goes on by itself.
    """
    standing = standing_here()
    if standing is not claims.NOWHERE:
        return standing
    if (carried := facts.carried()) is not None:
        standing = Standing.from_dict(carried)
    elif facts.is_elsewhere() and (flow_run := facts.flow_run_around()) is not None:
        standing = _around_subflow(engine, flow_run)
    if standing.run_id is None:
        return claims.NOWHERE
    if not facts.is_elsewhere() or run_lives(engine, standing):
        return standing
    if left_behind():
        raise torn_down()
    return claims.NOWHERE


def _around_subflow(engine: Engine, flow_run: Any) -> Standing:
    """What a subflow that is under no limits stands under, of whose process pool this is one."""
    with _subflows_lock:
        key = os.getpid(), str(flow_run.id)
        if key not in _subflows:
            _subflows[key] = _asked_of_subflow(engine, flow_run)
        return _subflows[key]


def _asked_of_subflow(engine: Engine, flow_run: Any) -> Standing:
    try:
        for run_id in asking.runs_around(flow_run):
            engine.configuration()  # the first question makes sure of the store
            run = engine.store.run_lease(engine.run_claim(run_id).holder or "")
            if run is not None and run.state is ClaimState.HELD:
                return adoption.standing_of(run_id, run)
    except (StoreUnavailable, httpx.HTTPError, PrefectException) as error:
        facts.run_logger().warning("Penstock: the run around this subflow is not known here: %s", error)
    return claims.NOWHERE


def _warn_of_tags(logger: logging.Logger | logging.LoggerAdapter[Any], ignored: tuple[str, ...]) -> None:
    if ignored:
        logger.warning("No limit sees the tags %s: a tag key has one value, and theirs is taken", ", ".join(ignored))
