"""What runs in the triggerer: the deferred wait for slots, and the slots that an operator keeps while deferred."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pkgutil
import time
from collections.abc import AsyncIterator, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from airflow.triggers.base import BaseTrigger, TriggerEvent
from penstock.claim import Claim, ClaimKind
from penstock.errors import PenstockError, StoreUnavailable

from penstock_airflow import asking, compatibility, installation, runs, telling

if TYPE_CHECKING:
    from penstock.decision import Reason
    from penstock.engine import Engine
    from penstock.request import Request

log = logging.getLogger("penstock.airflow")
KEEP_RETRY_SECONDS = 10.0


class PenstockTrigger(BaseTrigger):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """Fires when every claim is granted, one after the other, and not before `not_before` (seconds since 1970).

    The claims wait as tickets: any triggerer may go on with them after another's end. The resumed task makes the same
    claims and so adopts what the trigger holds. It fires as well when the task is to see for itself: at `until` the
    wait is over, a claim was ended by somebody, or the store stayed away (`store_error` in the event). All triggers of
    a process share its engine: one thread, one poll and one connection that listens, however many wait. `claims` is
    JSON text, so that Airflow's serializer leaves it alone.
    """

    def __init__(self, claims: str, not_before: float, until: float | None = None) -> None:
        super().__init__()
        self.claims, self.not_before, self.until = claims, not_before, until

    @classmethod
    def waiting_for(
        cls, claims: Sequence[Claim], *, not_before: float, until: float | None = None, in_queue: bool = True
    ) -> Self:
        """The trigger for these claims, in this order.

        `in_queue`: where Airflow's triggers have queues, it goes to a triggerer of its task's queue, as an operator's
        own does; else to one without queues.
        """
        trigger = cls(json.dumps([claim.as_dict() for claim in claims]), not_before, until)
        trigger.supports_triggerer_queue = in_queue
        return trigger

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """As Airflow stores it."""
        kwargs = {"claims": self.claims, "not_before": self.not_before, "until": self.until}
        return f"{type(self).__module__}.{type(self).__qualname__}", kwargs

    async def run(self) -> AsyncIterator[Any]:
        """Wait in the store, off the event loop."""
        runs.watch()
        event: dict[str, Any] = {"claims": [claim.claim_id for claim in self._claims()]}
        try:
            engine = await _engine(patience_seconds=None)
            for claim in self._claims():
                if not await self._granted(engine, claim):
                    break
        except StoreUnavailable as error:
            event["store_error"] = str(error)
        await asyncio.sleep(max(0.0, self.not_before - time.time()))
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """The user ended the task while it waited: its place is given up. The run's claim is the run's, and stays."""
        engine = await _engine()
        for claim in self._claims():
            if claim.kind is ClaimKind.OP:
                await engine.off_loop(partial(_give_up, engine, claim))

    def _claims(self) -> list[Claim]:
        return [Claim.from_dict(values) for values in json.loads(self.claims)]

    async def _granted(self, engine: Engine, claim: Claim) -> bool:
        """Wait until the claim holds its slots; False when the task is to see for itself.

        Raises StoreUnavailable when the store was away for too long.
        """
        is_run, now = claim.kind is ClaimKind.RUN, time.time()
        request = engine.request(
            claim,
            ticket=True,
            probed=is_run,
            eligible_after_seconds=0.0 if is_run else max(0.0, self.not_before - now),
        )
        request.tell = partial(_tell, request)
        try:
            lease = await request.acquire_ticket_async(float("inf") if self.until is None else self.until - now)
        except StoreUnavailable:
            raise
        except PenstockError as error:  # it was ended by somebody, or can no longer be granted
            log.info("Penstock: %s", error)
            return False
        if lease is None:
            return False
        log.info("Penstock: %s is granted, after %.1f s", claim, lease.waited_seconds)
        # A ticket lives in the store alone; this process must not answer for it when it has fired.
        lease.hand_over(seconds=engine.settings.ticket_seconds)
        return True


class HoldingTrigger(BaseTrigger):  # type: ignore[misc,unused-ignore]  # as above
    """An operator's own trigger, and meanwhile the operator's slots: they are renewed until it fires.

    The resumed task makes the same claim and so takes its slots over; where the trigger ends the task itself, they are
    given back here. To Airflow it looks like the trigger inside.
    """

    def __init__(self, penstock_claim: str, penstock_trigger: str, **kwargs: Any) -> None:
        super().__init__()
        self._claim, self._path = penstock_claim, penstock_trigger
        try:
            self.inner = pkgutil.resolve_name(penstock_trigger)(**kwargs)
        except Exception as error:  # Airflow's triggerer survives no other error here
            raise TypeError(f"{penstock_trigger}: {error!r}") from error
        self.supports_triggerer_queue = getattr(self.inner, "supports_triggerer_queue", True)

    @classmethod
    def around(cls, inner: Any, claim: Claim) -> Self:
        """The trigger in whose place it comes; `claim_id` names the operator's lease in the store, a ticket by now."""
        path, kwargs = inner.serialize()
        return cls(json.dumps(claim.as_dict()), path, **kwargs)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """As Airflow stores it. The arguments of the trigger inside stand beside ours, so Airflow treats them alike."""
        ours = {"penstock_claim": self._claim, "penstock_trigger": self._path}
        return f"{type(self).__module__}.{type(self).__qualname__}", ours | self.inner.serialize()[1]

    def render_template_fields(self, *args: Any, **kwargs: Any) -> None:
        """Those of the trigger inside."""
        self._tell_inner()
        self.inner.render_template_fields(*args, **kwargs)

    async def run(self) -> AsyncIterator[Any]:
        """Run the trigger inside. Whatever the store does, it runs."""
        runs.watch()
        self._tell_inner()
        claim = Claim.from_dict(json.loads(self._claim))
        keeping = asyncio.create_task(self._keep(claim))
        try:
            async for event in self.inner.run():
                ends = compatibility.ends_task(event)
                if not ends:
                    await self._last_renewal(claim)
                yield event
                if ends:
                    await self._release(claim)
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    async def cleanup(self) -> None:
        """As the trigger inside does."""
        await self.inner.cleanup()

    async def on_kill(self) -> None:
        """The user ended the task: the trigger inside ends its job, and the slots are free."""
        try:
            if (on_kill := getattr(self.inner, "on_kill", None)) is not None:
                await on_kill()
        finally:
            await self._release(Claim.from_dict(json.loads(self._claim)))

    def _tell_inner(self) -> None:
        """Pass on what the triggerer tells its triggers."""
        for name in ("task_instance", "trigger_id", "triggerer_job_id", "timeout_after"):
            if hasattr(self, name):
                setattr(self.inner, name, getattr(self, name))

    async def _keep(self, claim: Claim) -> None:
        context = copy_context()
        while True:
            try:
                engine = await _engine()
                break
            except PenstockError as error:
                log.error("Penstock: the slots kept while the task is deferred cannot be renewed now: %s", error)
                await asyncio.sleep(KEEP_RETRY_SECONDS)
        engine.wakeups.keep(claim.claim_id, lambda: context.run(_tell_loss, str(claim)))
        try:
            await asyncio.Event().wait()
        finally:
            engine.wakeups.drop(claim.claim_id)

    async def _last_renewal(self, claim: Claim) -> None:
        """Whoever resumes has the whole time to take the slots over."""
        try:
            engine = await _engine()
            seconds = engine.settings.ticket_seconds
            await engine.off_loop(lambda: engine.store.renew([claim.claim_id], ticket_seconds=seconds))
        except PenstockError as error:
            log.warning("Penstock: the slots could not be renewed, the task may have to wait for them: %s", error)

    async def _release(self, claim: Claim) -> None:
        try:
            engine = await _engine()
            await engine.off_loop(partial(_give_up, engine, claim))
        except PenstockError as error:
            log.warning("Penstock: the slots could not be given back, they are freed when they expire: %s", error)


async def _engine(*, patience_seconds: float | None = 0.0) -> Engine:
    """The engine of this triggerer. Its first use loads SQLAlchemy, not on the event loop.

    Raises StoreUnavailable when the store's URL cannot be read; None is the patience of the settings.
    """
    asking.ask_on(asyncio.get_running_loop())
    pauses = installation.pauses_of_patience(patience_seconds)
    while True:
        try:
            return await asyncio.to_thread(installation.engine)
        except StoreUnavailable as error:
            if (pause := next(pauses, None)) is None:
                raise
            log.warning(installation.AWAY, error)
        await asyncio.sleep(pause)


def _give_up(engine: Engine, claim: Claim) -> None:
    """End the claim, by its id, so that an asking that is under way is never granted, and whatever stands for it."""
    engine.configuration()
    engine.store.release(claim.claim_id, None)
    engine.end_op(claim, reason="its task was ended while it was deferred")


def _tell(request: Request, reasons: Sequence[Reason]) -> None:
    for line in telling.lines_of_wait(str(request.claim), reasons, held_back=bool(request.held_back_by)):
        log.info("Penstock: %s", line)


def _tell_loss(label: str) -> None:
    log.error("Penstock: the slots that %s keeps while it is deferred are lost: somebody freed them", label)
