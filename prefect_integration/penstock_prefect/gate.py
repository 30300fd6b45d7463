"""The gate around one attempt of a task or flow, and around a `slots` block: what runs here, and what it must claim.

The way of a claim: `limited` puts a function behind its `wrapping`, whose call comes to this `gate`; what is known of
the run (`facts`) becomes a claim and a standing by the pure functions of `claims`. A `Passage` takes it through
`engine.request`, the `Request` that waits and the store's `acquire`, which is one statement, and back again.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.exceptions import Pause

from penstock_prefect import adoption, asking, claims, facts, installation
from penstock_prefect.claims import Limits, Standing
from penstock_prefect.giving_up import left_behind, torn_down
from penstock_prefect.passage import Attempt, Kind, Passage, run_lives, standing_here

if TYPE_CHECKING:
    import logging

    from penstock.claim import Claim
    from penstock.engine import Engine

    from penstock_prefect.claims import FlowFacts, TaskFacts

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
    # In a thread: connecting and asking for the deployment's name are I/O. The thread sees this task's context.
    look = partial(copy_context().run, _passage, limits)
    passage = await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), look)
    try:
        yield await passage.acquire_async()
    except Pause as pause:
        await passage.off_loop(partial(passage.leave_suspended, pause.state))
        raise
    finally:
        await passage.give_back_async()


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
    if outer is claims.NOWHERE:
        outer = adoption.standing(engine)
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
    return Passage(engine, limits, logger, kind, outer, claimed)


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
    if standing is not claims.NOWHERE or (carried := facts.carried()) is None:
        return standing
    standing = Standing.from_dict(carried)
    if not facts.is_elsewhere() or run_lives(engine, standing):
        return standing
    if left_behind():
        raise torn_down()
    return claims.NOWHERE


def _warn_of_tags(logger: logging.Logger | logging.LoggerAdapter[Any], ignored: tuple[str, ...]) -> None:
    if ignored:
        logger.warning("No limit sees the tags %s: a tag key has one value, and theirs is taken", ", ".join(ignored))
