"""Workers that hold a run until it has its slots: nothing of it is started before."""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import httpx
from penstock.errors import (
    Blocked,
    ImpossibleClaim,
    LeaseLost,
    PenstockError,
    Skipped,
    StoreUnavailable,
    WaitTimeout,
)
from penstock.report import describe
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Completed, Failed, Scheduled
from prefect.utilities.engine import propose_state
from prefect.utilities.urls import url_for
from prefect.workers.base import BaseWorkerResult
from prefect.workers.process import ProcessVariables, ProcessWorker
from pydantic import Field

from penstock_prefect import adoption, claims, installation, probing, tickets
from penstock_prefect.declared import Declared

if TYPE_CHECKING:
    from uuid import UUID

    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.lease import Lease

    from penstock_prefect.claims import Limits

# Its methods are those of the worker class beside it; Prefect would take a subclass of its own for another worker type.
Worker: Any = object

AWAITING = "AwaitingConcurrencySlot"
OURS = (AWAITING, "Late")
"""The names of the state in which a run waits here; Prefect may call it late."""
AT_ONCE_SECONDS = 1.0
"""So long a run waits before it shows that it does: most waits are shorter, and each change of state has its price."""
LOOK_SECONDS = 10.0
"""How often the API is asked whether a waiting run still is to run."""
AWAY_SECONDS, SLACK_SECONDS = 20.0, 5.0
"""So far at least beyond the worker's prefetch a waiting run is put off, and so much more until it is put off again."""
AGAIN_SECONDS = 5.0
"""How long to wait before the store or the API is asked again that did not answer."""
FETCH_TRIES = 10
PROCESS_SECONDS = 0.5
"""How often is looked whether the process of a run is gone."""


class LimitedRuns(Worker):  # type: ignore[misc]  # see above
    """A mixin over any `BaseWorker`: `class OurWorker(LimitedRuns, KubernetesWorker): type = "penstock-kubernetes"`.

    A run has the slots of its run claim before its infrastructure starts, and gives them back when that has ended. One
    without slots is Scheduled, named AwaitingConcurrencySlot, beyond the worker's prefetch; the worker waits for it in
    the store, which takes nothing of the worker's own `limit`, and fetches it as soon as it is granted. What a run asks
    for besides what its tags do is its deployment's job variable `penstock`, see declared.py.

    `runs_join`: Penstock is installed where the flows run. Their processes then keep the slots alive, whatever becomes
    of the worker. Where it is not, set it to False: a run keeps them for as long as the API says that it is not over.
    """

    runs_join: ClassVar[bool] = True
    runs_here: ClassVar[bool] = False
    """What `run` reports as started is the id of a process on this machine: when that is gone, the slots are free."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits: dict[UUID, tuple[Any, asyncio.Task[None]]] = {}

    async def setup(self) -> None:
        """Open this worker's session in the store as well: its thread sweeps, and asks about runs."""
        await super().setup()
        probing.watch()
        try:
            if (engine := await self._engine()) is not None:
                await engine.off_loop(engine.session_id)
        except StoreUnavailable as error:
            self._logger.warning("Penstock: the store does not answer yet, no run starts before it does: %s", error)

    async def teardown(self, *exc_info: Any) -> None:
        """Leave those who wait in the store as tickets, which keep their rank: the next worker goes on with them."""
        waits = list(self._waits.values())
        for _, wait in waits:
            wait.cancel()
        await asyncio.gather(*(wait for _, wait in waits), return_exceptions=True)
        # Other workers see them now, not when their tickets have expired.
        await asyncio.gather(*(self._leave_to_others(flow_run) for flow_run, _ in waits))
        await super().teardown(*exc_info)

    async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> Any:
        """Run it if it has its slots; otherwise leave it waiting, and start nothing."""
        engine = await self._engine()
        if engine is None or engine.settings.enforcement == "off":
            return await super().run(flow_run, configuration, task_status)
        claim, limits = await self._claim(flow_run, engine.deployment)
        if (older := self._waits.pop(flow_run.id, None)) is not None:
            older[1].cancel()  # its ticket stays, and is ours now
            await asyncio.gather(older[1], return_exceptions=True)
        try:
            asked = await self._ask(engine, claim, limits)
        except (Skipped, Blocked, ImpossibleClaim) as error:
            await self._end(engine, flow_run, claim, error)
            return _not_started(task_status)
        if not isinstance(asked, tickets.Place):
            return await self._run_with(asked, engine, flow_run, configuration, task_status)
        try:
            waits = await self._put_off(engine, flow_run, claim)
        except BaseException:
            tickets.let_go(engine, asked)
            raise
        if waits:
            wait = asyncio.create_task(self._wait(engine, flow_run, claim, limits, asked))
            self._waits[flow_run.id] = flow_run, wait
            await asyncio.sleep(0)  # now it has begun: a task that is cancelled before does not let its ticket go
        else:
            tickets.let_go(engine, asked)
            if await self._stands(flow_run) == "over":
                await engine.off_loop(partial(tickets.end, engine, claim))
        return _not_started(task_status)

    # -- the claim ---------------------------------------------------------------------------------------------------

    async def _engine(self) -> Engine | None:
        return await asyncio.to_thread(installation.engine)

    async def _claim(self, flow_run: Any, deployment_name: str) -> tuple[Claim, Limits]:
        """Raises ClaimError when the job variable `penstock` is wrong."""
        flow = await self.client.read_flow(flow_run.flow_id)
        deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
        limits = Declared.of(deployment.job_variables if deployment is not None else {}, flow_run.job_variables)
        facts = claims.FlowFacts(
            flow_run_id=str(flow_run.id),
            flow_name=flow.name,
            flow_run_name=flow_run.name,
            run_count=flow_run.run_count + 1,
            deployment_name=deployment.name if deployment is not None else None,
            work_pool_name=self._work_pool_name,
            scheduled=bool(flow_run.auto_scheduled),
            tags=frozenset(flow_run.tags),
            url=url_for("flow-run", obj_id=flow_run.id),
        )
        return claims.run_claim(facts, limits, deployment_name)[0], limits

    async def _ask(self, engine: Engine, claim: Claim, limits: Limits) -> Lease | tickets.Place:
        """The lease; or what goes on waiting for its ticket."""
        if limits.on_blocked != "wait":
            if await tickets.blocked_by_older(engine, claim):
                raise (Skipped if limits.on_blocked == "skip" else Blocked)(f"{claim.label}: {tickets.OLDER_HOLDS}", ())
            lease = await engine.request(claim, probed=not self.runs_join).acquire_async(limits.on_blocked)
            if not self.runs_join:
                lease.hand_over(seconds=engine.settings.run_probe_seconds)
            return lease
        place = tickets.queue(engine, claim, probed=not self.runs_join)
        try:
            await asyncio.wait({place.lease}, timeout=AT_ONCE_SECONDS)
        except asyncio.CancelledError:
            tickets.let_go(engine, place)
            raise
        return await self._adopt(engine, claim, place.lease.result()) if place.lease.done() else place

    async def _adopt(self, engine: Engine, claim: Claim, ticket: Lease) -> Lease:
        """The lease in this process's own hands: a ticket lives for as long as its deadline, this as long as we do."""
        ticket.hand_over(seconds=engine.settings.ticket_seconds)
        return await engine.acquire_async(claim) if self.runs_join else ticket

    # -- with its slots ----------------------------------------------------------------------------------------------

    async def _run_with(
        self: Any, lease: Lease, engine: Engine, flow_run: Any, configuration: Any, task_status: Any
    ) -> Any:
        crashed = ended = False
        told, watching = _Told(task_status), None
        try:
            logger = self.get_flow_run_logger(flow_run)
            lost = "Penstock: the slots are lost, others may get them: %r"
            lease.on_lost.append(partial(logger.error, lost))
            if lease.unlimited:
                logger.error("Penstock: the store is away, this runs WITHOUT LIMITS (on_store_error=run)")
            if self.runs_join:
                adoption.prepare(configuration.env, lease.claim_id)
            if self.runs_here:
                watching = asyncio.create_task(self._end_with_process(engine, lease, told))
            result = await super().run(flow_run, configuration, told)
            ended, crashed = True, result.status_code != 0
        finally:
            if watching is not None:
                watching.cancel()
            if not told.gone:
                await engine.off_loop(partial(self._give_back, engine, lease, ended=ended, crashed=crashed))
        return result

    async def _end_with_process(self, engine: Engine, lease: Lease, told: _Told) -> None:
        """Before `run` returns, Prefect may start another process, for the hooks of a run that was killed."""
        pid = await told.identifier
        while _lives(int(pid)):
            await asyncio.sleep(PROCESS_SECONDS)
        told.gone = True
        await engine.off_loop(partial(self._give_back, engine, lease, ended=True, crashed=True))

    def _give_back(self, engine: Engine, lease: Lease, *, ended: bool, crashed: bool) -> None:
        """The run keeps its lease where it may be running still, and where its own process is to end it."""
        try:
            if self.runs_join:
                lease.release()
            if engine.leases.find(lease.claim_id) is not None:
                return  # another attempt of the run has come to hold it here
            if crashed or (ended and not self.runs_join):  # its process can give nothing back any more, or never could
                engine.store.end(lease.claim_id, reason="the run's infrastructure has ended")
        except StoreUnavailable as error:
            self._logger.error("Penstock: slots could not be given back; they are freed when they expire: %s", error)

    # -- without -----------------------------------------------------------------------------------------------------

    async def _wait(
        self: Any, engine: Engine, flow_run: Any, claim: Claim, limits: Limits, place: tickets.Place
    ) -> None:
        """Wait for the run's slots, and end it where it is not to have them."""
        logger = self.get_flow_run_logger(flow_run)
        try:
            try:
                await self._wait_on(engine, flow_run, claim, limits, place)
            except PenstockError as error:
                await self._end(engine, flow_run, claim, error)
        except (PenstockError, httpx.HTTPError) as error:
            logger.warning("Penstock: whether the run has its slots is asked again when its time comes: %s", error)
        except Exception:
            logger.exception("Penstock: the wait has failed; the run is looked at again when its time comes")
        finally:
            if (mine := self._waits.get(flow_run.id)) is not None and mine[1] is asyncio.current_task():
                del self._waits[flow_run.id]

    async def _wait_on(
        self: Any, engine: Engine, flow_run: Any, claim: Claim, limits: Limits, place: tickets.Place
    ) -> None:
        """Until the run has its slots, then have it fetched; or until it is not to run any more.

        Raises what ends the run: WaitTimeout, ImpossibleClaim, and StoreUnavailable where nobody is to wait for that.
        """
        logger, clock = self.get_flow_run_logger(flow_run), time.monotonic
        began, put_off_at = place.began_at, clock() + _away_seconds(engine)
        timeout = math.inf if limits.wait_timeout_seconds is None else limits.wait_timeout_seconds
        try:
            while True:
                began = min(began, place.began_at)
                look_seconds = min(LOOK_SECONDS, put_off_at - clock(), began + timeout - clock())
                await asyncio.wait({place.lease}, timeout=max(0.0, look_seconds))
                try:
                    stands = await self._stands(flow_run)
                    if stands == "over":
                        await engine.off_loop(partial(tickets.end, engine, claim))
                    if stands != "waiting":
                        return
                    if place.lease.done():
                        place.lease.result()
                        await self._fetch(flow_run)
                        return
                    if clock() >= put_off_at:
                        put_off_at = clock() + _away_seconds(engine)
                        await self._put_off(engine, flow_run, claim)
                except LeaseLost as error:
                    logger.info("Penstock: the place in the queue is lost, it queues again: %s", error)
                    claim = replace(claim, claim_id=str(uuid.uuid4()))
                    place = tickets.queue(engine, claim, probed=not self.runs_join)
                except (StoreUnavailable, httpx.HTTPError) as error:
                    failed = place.lease.done() and place.lease.exception() is not None
                    if failed and isinstance(error, StoreUnavailable) and engine.settings.on_store_error == "fail":
                        raise
                    logger.warning("Penstock: the run waits on: %s", error)
                    if failed:
                        place = tickets.queue(engine, claim, probed=not self.runs_join)
                    await asyncio.sleep(AGAIN_SECONDS)
                if clock() >= min(began, place.began_at) + timeout and not place.lease.done():
                    raise WaitTimeout(f"{claim.label}: no slot within {timeout:g} s; wait longer, or raise the limit")
        finally:
            tickets.let_go(engine, place)

    async def _stands(self, flow_run: Any) -> Literal["waiting", "over", "taken"]:
        """Whether the run still waits here, is not to run any more, or somebody else has taken it."""
        try:
            run = await self.client.read_flow_run(flow_run.id)
        except ObjectNotFound:
            return "over"
        state = run.state
        if state is not None and state.is_cancelling() and run.run_count == flow_run.run_count:
            # It had infrastructure once, before a crash: only then is this left to a worker.
            await self.client.set_flow_run_state(run.id, Cancelled(message="Cancelled while it waited"), force=True)
            return "over"
        if state is None or state.is_final():
            return "over"
        return "waiting" if state.is_scheduled() and state.name in OURS else "taken"

    async def _put_off(self, engine: Engine, flow_run: Any, claim: Claim) -> bool:
        """Show that it waits, and what for. False when it is not to run any more."""
        why = await engine.off_loop(partial(tickets.why, engine, claim))
        seconds = self._prefetch_seconds + _away_seconds(engine) + SLACK_SECONDS
        return bool(await self._schedule(flow_run, after_seconds=seconds, message=why))

    async def _leave_to_others(self, flow_run: Any) -> None:
        try:
            if await self._stands(flow_run) == "waiting":
                await self._schedule(flow_run, after_seconds=0.0, message="Its worker has stopped, any other goes on")
        except (httpx.HTTPError, RuntimeError) as error:  # the latter: the client is closed
            self._logger.warning("Penstock: run %s waits on until its time comes: %s", flow_run.name, error)

    async def _fetch(self, flow_run: Any) -> None:
        """Have it submitted now, by this worker if there is room in its `limit`, else by who comes first."""
        if not await self._schedule(flow_run, after_seconds=0.0, message="Its slots are granted"):
            return
        for _ in range(FETCH_TRIES):
            await self.get_and_submit_flow_runs()
            await asyncio.sleep(0.5)
            if await self._stands(flow_run) != "waiting":
                return

    async def _schedule(self, flow_run: Any, *, after_seconds: float, message: str) -> bool:
        at = datetime.now(UTC) + timedelta(seconds=after_seconds)
        state = Scheduled(name=AWAITING, scheduled_time=at, message=message)
        try:
            return bool((await propose_state(self.client, state, flow_run_id=flow_run.id)).is_scheduled())
        except (Abort, ObjectNotFound):
            return False

    async def _end(self, engine: Engine, flow_run: Any, claim: Claim, error: PenstockError) -> None:
        """The run ends without having begun."""
        skipped = isinstance(error, Skipped)
        text = (describe(error.reasons) if isinstance(error, Skipped) else "") or str(error)
        self.get_flow_run_logger(flow_run).info("Penstock: not started: %s", error)
        state = Completed(name="Skipped", message=text) if skipped else Failed(message=text)
        try:  # that it was skipped is forgotten as well: it may be run again
            await engine.off_loop(partial(tickets.end, engine, claim))
        except StoreUnavailable as away:
            self._logger.warning(
                "Penstock: what run %s has in the store stays until it expires: %s", flow_run.name, away
            )
        try:
            await propose_state(self.client, state, flow_run_id=flow_run.id)
        except (Abort, ObjectNotFound):
            return


def _away_seconds(engine: Engine) -> float:
    """How long others do not see a run whose worker has died. They are to find its ticket, with its rank: that lives on
    for two thirds of its time at least, and they ask for runs every 10 s.
    """
    return max(AWAY_SECONDS, engine.settings.ticket_seconds / 3)


class _Told:
    """Hears what the worker tells of the infrastructure that it has started, and passes it on."""

    def __init__(self, task_status: Any) -> None:
        self._task_status = task_status
        self.identifier: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.gone = False

    def started(self, value: Any = None) -> None:
        self.identifier.set_result(value)
        if self._task_status is not None:
            self._task_status.started(value)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _not_started(task_status: Any) -> BaseWorkerResult:
    if task_status is not None:
        task_status.started(None)
    return BaseWorkerResult(identifier="not started", status_code=0)


class PenstockProcessVariables(ProcessVariables):  # type: ignore[misc]  # Prefect is not installed where types are checked
    """Those of the process worker, and what a run asks for before it starts."""

    penstock: Declared | None = Field(
        default=None, title="Limits", description="What a run holds from before its start to its end."
    )


class PenstockProcessWorker(LimitedRuns, ProcessWorker):  # type: ignore[misc]  # as above
    """Runs flows as processes on the worker's machine, each when it has its slots."""

    type = "penstock-process"
    runs_here = True
    job_configuration_variables = PenstockProcessVariables
    _display_name = "Process under limits"
    _description = "Execute flow runs as subprocesses, each when Penstock has granted its slots."
    _documentation_url = ""
