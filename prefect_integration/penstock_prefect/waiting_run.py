"""A run that a worker holds back until it has its slots: shown, put off, fetched, or ended before it began."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import httpx
from penstock.errors import LeaseLost, PenstockError, Skipped, StoreUnavailable, WaitTimeout
from penstock.report import describe
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Completed, Failed, Scheduled
from prefect.utilities.engine import propose_state

from penstock_prefect import tickets

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.engine import Engine

    from penstock_prefect.claims import Limits

AWAITING = "AwaitingConcurrencySlot"
OURS = (AWAITING, "Late")
"""The names of the state in which a run waits here; Prefect may call it late."""
LOOK_SECONDS = 10.0
"""How often the API is asked whether a waiting run still is to run."""
AWAY_SECONDS, SLACK_SECONDS = 20.0, 5.0
"""So far at least beyond the worker's prefetch a waiting run is put off, and so much more until it is put off again."""
AGAIN_SECONDS = 5.0
"""How long to wait before the store or the API is asked again that did not answer."""
FETCH_TRIES = 10


class WaitingRun:
    """One run of one worker. `worker` is the mixed class, of which this uses what any `BaseWorker` has."""

    def __init__(self, worker: Any, engine: Engine, flow_run: Any, claim: Claim, limits: Limits) -> None:
        self._worker, self._engine, self._flow_run, self._limits = worker, engine, flow_run, limits
        self._claim = claim
        self._logger = worker.get_flow_run_logger(flow_run)

    async def wait(self, place: tickets.Place) -> None:
        """Wait for the run's slots, and end it where it is not to have them."""
        try:
            try:
                await self._wait_on(place)
            except PenstockError as error:
                await self.end(error)
        except (PenstockError, httpx.HTTPError) as error:
            self._logger.warning(
                "Penstock: whether the run has its slots is asked again when its time comes: %s", error
            )
        except Exception:
            self._logger.exception("Penstock: the wait has failed; the run is looked at again when its time comes")

    async def _wait_on(self, place: tickets.Place) -> None:
        """Until the run has its slots, then have it fetched; or until it is not to run any more.

        Raises what ends the run: WaitTimeout, ImpossibleClaim, and StoreUnavailable where nobody is to wait for that.
        """
        engine, clock = self._engine, time.monotonic
        began, put_off_at = place.began_at, clock() + self._away_seconds
        timeout = math.inf if self._limits.wait_timeout_seconds is None else self._limits.wait_timeout_seconds
        try:
            while True:
                began = min(began, place.began_at)
                look_seconds = min(LOOK_SECONDS, put_off_at - clock(), began + timeout - clock())
                await asyncio.wait({place.lease}, timeout=max(0.0, look_seconds))
                try:
                    stands = await self.stands()
                    if stands == "over":
                        await self.leave_queue()
                    if stands != "waiting":
                        return
                    if place.lease.done():
                        place.lease.result()
                        await self._fetch()
                        return
                    if clock() >= put_off_at:
                        put_off_at = clock() + self._away_seconds
                        await self.put_off()
                except LeaseLost as error:
                    self._logger.info("Penstock: the place in the queue is lost, it queues again: %s", error)
                    self._claim = replace(self._claim, claim_id=str(uuid.uuid4()))
                    place = self._queue()
                except (StoreUnavailable, httpx.HTTPError) as error:
                    failed = place.lease.done() and place.lease.exception() is not None
                    if failed and isinstance(error, StoreUnavailable) and engine.settings.on_store_error == "fail":
                        raise
                    self._logger.warning("Penstock: the run waits on: %s", error)
                    if failed:
                        place = self._queue()
                    await asyncio.sleep(AGAIN_SECONDS)
                if clock() >= min(began, place.began_at) + timeout and not place.lease.done():
                    raise WaitTimeout(f"{self._claim}: no slot within {timeout:g} s; wait longer, or raise the limit")
        finally:
            tickets.let_go(engine, place)

    def _queue(self) -> tickets.Place:
        return tickets.queue(self._engine, self._claim, probed=not self._worker.runs_join)

    async def stands(self) -> Literal["waiting", "over", "taken"]:
        """Whether the run still waits here, is not to run any more, or somebody else has taken it."""
        try:
            run = await self._worker.client.read_flow_run(self._flow_run.id)
        except ObjectNotFound:
            return "over"
        state = run.state
        if state is not None and state.is_cancelling() and run.run_count == self._flow_run.run_count:
            # It had infrastructure once, before a crash: only then is this left to a worker.
            cancelled = Cancelled(message="Cancelled while it waited")
            await self._worker.client.set_flow_run_state(run.id, cancelled, force=True)
            return "over"
        if state is None or state.is_final():
            return "over"
        return "waiting" if state.is_scheduled() and state.name in OURS else "taken"

    async def is_pending(self) -> bool:
        """Whether it is still to be begun by whoever is the first; so too where the API does not say."""
        try:
            state = (await self._worker.client.read_flow_run(self._flow_run.id)).state
        except ObjectNotFound:
            return False
        except httpx.HTTPError as error:
            self._logger.warning("Penstock: the API does not say how the run stands: %s", error)
            return True
        return state is not None and bool(state.is_pending())

    async def put_off(self) -> bool:
        """Show that it waits, and what for. False when it is not to run any more."""
        why = await self._engine.off_loop(partial(tickets.why, self._engine, self._claim))
        seconds = self._worker._prefetch_seconds + self._away_seconds + SLACK_SECONDS
        return await self._schedule(after_seconds=seconds, message=why)

    async def leave_to_others(self) -> None:
        """Have other workers see it now, not when its ticket has expired."""
        try:
            if await self.stands() == "waiting":
                await self._schedule(after_seconds=0.0, message="Its worker has stopped, any other goes on")
        except (httpx.HTTPError, RuntimeError) as error:  # the latter: the client is closed
            self._logger.warning("Penstock: run %s waits on until its time comes: %s", self._flow_run.name, error)

    async def leave_queue(self) -> None:
        """Nothing of it stays in the store. Raises StoreUnavailable."""
        await self._engine.off_loop(partial(tickets.end, self._engine, self._claim))

    async def end(self, error: PenstockError) -> None:
        """The run ends without having begun."""
        skipped = isinstance(error, Skipped)
        text = (describe(error.reasons) if isinstance(error, Skipped) else "") or str(error)
        self._logger.info("Penstock: not started: %s", error)
        state = Completed(name="Skipped", message=text) if skipped else Failed(message=text)
        try:  # that it was skipped is forgotten as well: it may be run again
            await self.leave_queue()
        except StoreUnavailable as away:
            name = self._flow_run.name
            self._logger.warning("Penstock: what run %s has in the store stays until it expires: %s", name, away)
        try:
            await propose_state(self._worker.client, state, flow_run_id=self._flow_run.id)
        except (Abort, ObjectNotFound):
            return

    async def _fetch(self) -> None:
        """Have it submitted now, by this worker if there is room in its `limit`, else by who comes first."""
        if not await self._schedule(after_seconds=0.0, message="Its slots are granted"):
            return
        for _ in range(FETCH_TRIES):
            await self._worker.get_and_submit_flow_runs()
            await asyncio.sleep(0.5)
            if await self.stands() != "waiting":
                return

    async def _schedule(self, *, after_seconds: float, message: str) -> bool:
        at = datetime.now(UTC) + timedelta(seconds=after_seconds)
        state = Scheduled(name=AWAITING, scheduled_time=at, message=message)
        try:
            now = await propose_state(self._worker.client, state, flow_run_id=self._flow_run.id)
        except (Abort, ObjectNotFound):
            return False
        return bool(now.is_scheduled())

    @property
    def _away_seconds(self) -> float:
        """How long others do not see a run whose worker has died. They are to find its ticket, with its rank: that
        lives on for two thirds of its time at least, and they ask for runs every 10 s.
        """
        return max(AWAY_SECONDS, self._engine.settings.ticket_seconds / 3)
