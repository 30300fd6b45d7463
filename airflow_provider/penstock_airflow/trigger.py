"""The deferred wait: a trigger that keeps a place in the queue, takes the slots when they are free, and holds them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from airflow.triggers.base import BaseTrigger, TriggerEvent
from penstock.claim import Claim, ClaimKind
from penstock.decision import Granted, Waiting
from penstock.errors import LeaseLost, StoreUnavailable
from penstock.report import describe

from penstock_airflow import installation, runs

if TYPE_CHECKING:
    from penstock.decision import Decision
    from penstock.request import Request

log = logging.getLogger("penstock.airflow")


class PenstockTrigger(BaseTrigger):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """Fires when every claim is granted, one after the other, and not before `not_before` (seconds since 1970).

    The claims wait as tickets: any triggerer may go on with them after another's end. The resumed task makes the same
    claims and so adopts what the trigger holds. It fires as well when a claim was ended by somebody: the task then sees
    for itself. `claims` is JSON text, so that Airflow's serializer leaves it alone.
    """

    supports_triggerer_queue = False

    def __init__(self, claims: str, not_before: float) -> None:
        super().__init__()
        self.claims, self.not_before = claims, not_before

    @classmethod
    def waiting_for(cls, claims: Sequence[Claim], *, not_before: float) -> Self:
        """The trigger for these claims, in this order."""
        return cls(json.dumps([claim.as_dict() for claim in claims]), not_before)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """As Airflow stores it."""
        kwargs = {"claims": self.claims, "not_before": self.not_before}
        return f"{type(self).__module__}.{type(self).__qualname__}", kwargs

    async def run(self) -> AsyncIterator[Any]:
        """Wait in the store, off the event loop. Raises StoreUnavailable when the store was away for too long."""
        runs.watch(asyncio.get_running_loop())
        for claim in self._claims():
            await self._granted(claim)
        await asyncio.sleep(max(0.0, self.not_before - time.time()))
        yield TriggerEvent({"claims": [claim.claim_id for claim in self._claims()]})

    async def on_kill(self) -> None:
        """The user ended the task while it waited: its place is given up. The run's claim is the run's, and stays."""
        for claim in self._claims():
            if claim.kind is ClaimKind.OP:
                await asyncio.to_thread(self._request(claim).withdraw)

    def _claims(self) -> list[Claim]:
        return [Claim.from_dict(values) for values in json.loads(self.claims)]

    def _request(self, claim: Claim) -> Request:
        wait_seconds = max(0.0, self.not_before - time.time())
        is_run = claim.kind is ClaimKind.RUN
        return installation.engine().request(
            claim, ticket=True, probed=is_run, eligible_after_seconds=0.0 if is_run else wait_seconds
        )

    async def _granted(self, claim: Claim) -> None:
        """Return when the claim holds its slots, or has come to an end that only the task itself can tell."""
        engine = await asyncio.to_thread(lambda: installation.patiently(installation.engine))
        request = self._request(claim)
        away_since: float | None = None
        announced = False
        while True:
            pause = engine.settings.poll_max_seconds
            try:
                decision = await asyncio.to_thread(self._step, request)
                away_since = None
            except LeaseLost as error:
                log.info("Penstock: %s", error)
                return
            except StoreUnavailable as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > engine.settings.store_retry_seconds:
                    raise
                log.warning("the store is away, trying again: %s", error)
                pause *= 5
            else:
                if isinstance(decision, Granted):
                    log.info("Penstock: %s is granted", claim.label)
                    # A ticket lives in the store alone; this process must not answer for it when it has fired.
                    decision.lease.hand_over(seconds=engine.settings.ticket_seconds)
                    return
                if not isinstance(decision, Waiting):
                    return
                if not announced:
                    announced = True
                    reasons = await asyncio.to_thread(engine.reasons, decision.claim_id)
                    log.info("Penstock: %s waits: %s", claim.label, describe(reasons))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret

    def _step(self, request: Request) -> Decision:
        """One look at the store. Nobody beats in a process that only holds tickets, so the upkeep is done here."""
        engine = installation.engine()
        decision = request.step()
        if isinstance(decision, Waiting):
            engine.sweep_if_due()
        return decision
