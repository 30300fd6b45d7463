"""Workers that hold a run until it has its slots: nothing of it is started before."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
from penstock.errors import Blocked, ImpossibleClaim, LeaseLost, Skipped, StoreUnavailable
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for
from prefect.workers.base import BaseWorkerResult

from penstock_prefect import adoption, claims, installation, probing, suspended, tickets
from penstock_prefect.declared import Declared
from penstock_prefect.settings import settings
from penstock_prefect.started import Started
from penstock_prefect.waiting_run import WaitingRun

if TYPE_CHECKING:
    from uuid import UUID

    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.lease import Lease

    from penstock_prefect.claims import Limits

# Its methods are those of the worker class beside it; Prefect would take a subclass of its own for another worker type.
Worker: Any = object

AT_ONCE_SECONDS = 1.0
"""So long a run waits before it shows that it does: most waits are shorter, and each change of state has its price."""


class LimitedRuns(Worker):  # type: ignore[misc]  # see above
    """A mixin over any `BaseWorker`: `class OurWorker(LimitedRuns, KubernetesWorker): type = "penstock-kubernetes"`.

    A run has the slots of its run claim before its infrastructure starts, and gives them back when that has ended. One
    without slots is Scheduled, named AwaitingConcurrencySlot, beyond the worker's prefetch; the worker waits for it in
    the store, which takes nothing of the worker's own `limit`, and fetches it as soon as it is granted. What a run asks
    for besides what its tags do is its deployment's job variable `penstock`, see declared.py.

    `runs_join`: Penstock is installed where the flows run. Their processes then keep the slots alive, whatever becomes
    of the worker. Where it is not, set it to False: a run keeps them for as long as the API says that it is not over,
    as it does elsewhere than here until its process has joined.
    """

    runs_join: ClassVar[bool] = True
    runs_here: ClassVar[bool] = False
    """What `run` reports as started is the id of a process on this machine: when that is gone, the slots are free."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits: dict[UUID, tuple[WaitingRun, asyncio.Task[None]]] = {}

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
        await asyncio.gather(*(waiting.leave_to_others() for waiting, _ in waits))
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
        waiting = WaitingRun(self, engine, flow_run, claim, limits)
        if await self._is_begun_elsewhere(engine, claim, waiting):
            return _not_started(task_status)
        try:
            asked = await self._ask(engine, claim, limits, resumed=suspended.is_resuming(flow_run))
        except (Skipped, Blocked, ImpossibleClaim) as error:
            await waiting.end(error)
            return _not_started(task_status)
        if not isinstance(asked, tickets.Place):
            return await self._run_with(asked, engine, flow_run, configuration, task_status)
        try:
            waits = await waiting.put_off()
        except BaseException:
            tickets.let_go(engine, asked)
            raise
        if waits:
            wait = asyncio.create_task(waiting.wait(asked))
            self._waits[flow_run.id] = waiting, wait
            wait.add_done_callback(partial(self._waits_no_more, flow_run.id))
            await asyncio.sleep(0)  # now it has begun: a task that is cancelled before does not let its ticket go
        else:
            tickets.let_go(engine, asked)
            if await waiting.stands() == "over":
                await waiting.leave_queue()
        return _not_started(task_status)

    def _waits_no_more(self, flow_run_id: UUID, wait: asyncio.Task[None]) -> None:
        if (mine := self._waits.get(flow_run_id)) is not None and mine[1] is wait:
            del self._waits[flow_run_id]

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

    async def _is_begun_elsewhere(self, engine: Engine, claim: Claim, waiting: WaitingRun) -> bool:
        """Whether a process of this attempt that was started before has begun it, once that is known: a run that was
        declared crashed while it was prepared, and scheduled again, has one.

        That process asks the API when to begin. The run stays Pending for it meanwhile: put off, it would wait for a
        process that waits for the run's time.
        """
        while await engine.off_loop(partial(tickets.is_being_begun, engine, claim)):
            if not await waiting.is_pending():
                return True
            await asyncio.sleep(engine.settings.poll_max_seconds)
        return False

    async def _ask(self, engine: Engine, claim: Claim, limits: Limits, *, resumed: bool) -> Lease | tickets.Place:
        """The lease; or what goes on waiting for its ticket."""
        kept = resumed and await engine.off_loop(partial(tickets.is_kept, engine, claim))
        if kept or limits.on_blocked != "wait":
            if not kept and await tickets.blocked_by_older(engine, claim):
                raise (Skipped if limits.on_blocked == "skip" else Blocked)(f"{claim}: {tickets.OLDER_HOLDS}", ())
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
        started, watching = Started(task_status), None
        try:
            logger = self.get_flow_run_logger(flow_run)
            lost = "Penstock: the slots are lost, others may get them: %r"
            lease.on_lost.append(partial(logger.error, lost))
            if lease.unlimited:
                logger.error("Penstock: the store is away, this runs WITHOUT LIMITS (on_store_error=run)")
            if self.runs_join and not lease.unlimited:
                adoption.prepare(configuration.env, lease.claim_id)
                if not self.runs_here:  # should this worker be killed, a process that takes long to begin comes to them
                    await engine.off_loop(partial(self._have_api_asked, engine, lease))
            if self.runs_here:
                watching = asyncio.create_task(self._end_with_process(engine, lease, flow_run, started))
            result = await super().run(flow_run, configuration, started)
            ended, crashed = True, result.status_code != 0
        finally:
            if watching is not None and started.gone:
                await asyncio.wait({watching})  # it gives back
            else:
                if watching is not None:
                    watching.cancel()
                if started.told and not ended:
                    await engine.off_loop(partial(self._leave, engine, lease))
                else:
                    await self._give_back(engine, lease, flow_run, ended=ended, crashed=crashed)
        return result

    async def _end_with_process(self, engine: Engine, lease: Lease, flow_run: Any, started: Started) -> None:
        """Before `run` returns, Prefect may start another process, for the hooks of a run that was killed."""
        await started.process_is_gone()
        started.gone = True
        await self._give_back(engine, lease, flow_run, ended=True, crashed=True)

    async def _give_back(self: Any, engine: Engine, lease: Lease, flow_run: Any, *, ended: bool, crashed: bool) -> None:
        pools = lease.claim.pools
        held = ended and settings().holds_while_suspended(pools) and await self._is_suspended(flow_run)
        if held and await engine.off_loop(partial(suspended.keep, engine, lease, pools)):
            return
        await engine.off_loop(partial(self._end, engine, lease, ended=ended, crashed=crashed))

    def _have_api_asked(self, engine: Engine, lease: Lease) -> None:
        try:
            tickets.have_api_asked(engine, lease, stay=True)
        except StoreUnavailable as error:
            self._logger.warning(
                "Penstock: until its process begins the run's slots are this worker's alone: %s", error
            )

    def _leave(self, engine: Engine, lease: Lease) -> None:
        """This worker does not watch any longer what it has started: a process that has not joined the lease yet comes
        to it still. One on this machine comes soon or never, so that expires; of any other only the API can tell.
        """
        # Where it is held twice another attempt of the run has come to hold it here.
        if self.runs_join and lease.holds == 1 and not lease.unlimited:
            with suppress(LeaseLost, StoreUnavailable):  # the former: the process has joined, and keeps it
                if self.runs_here:
                    lease.hand_over(seconds=engine.settings.ticket_seconds)
                else:
                    tickets.have_api_asked(engine, lease, stay=False)
                return
        self._end(engine, lease, ended=False, crashed=False)

    async def _is_suspended(self: Any, flow_run: Any) -> bool:
        try:
            return suspended.is_suspended((await self.client.read_flow_run(flow_run.id)).state)
        except (httpx.HTTPError, ObjectNotFound, RuntimeError) as error:  # the last: the client is closed
            self._logger.warning("Penstock: the API does not say whether run %s is over: %s", flow_run.name, error)
            return False

    def _end(self, engine: Engine, lease: Lease, *, ended: bool, crashed: bool) -> None:
        """The run keeps its lease where it may be running still, and where its own process is to end it."""
        try:
            try:
                # Another one, where it gave this back for a while.
                run = engine.store.run_lease(lease.claim.holder or "")
            finally:
                if self.runs_join:
                    lease.release()  # what the store does not hear of now, the next beat tells it
            if engine.leases.find(lease.claim_id) is not None:
                return  # another attempt of the run has come to hold it here
            # Its process can give nothing back any more, or never could. One that was killed by SIGTERM has not, and
            # Prefect's supervisor of it ends well.
            over = crashed or (ended and (self.runs_here or not self.runs_join))
            if over and run is not None and run.attempt <= lease.claim.attempt:
                engine.store.end(run.claim_id, reason="the run's infrastructure has ended")
        except StoreUnavailable as error:
            self._logger.error("Penstock: slots could not be given back; they are freed when they expire: %s", error)


def _not_started(task_status: Any) -> BaseWorkerResult:
    if task_status is not None:
        task_status.started(None)
    return BaseWorkerResult(identifier="not started", status_code=0)
