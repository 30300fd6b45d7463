"""`released`, `areleased`: a flow gives its run's slots back for the length of a block, such as a pause."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from penstock.errors import ClaimError, StoreUnavailable

from penstock_prefect import adoption, facts, gate, installation
from penstock_prefect.attempts import stand_under, standing_here
from penstock_prefect.claims import NOWHERE, Limits, Standing
from penstock_prefect.passage import Passage

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.lease import Lease

    from penstock_prefect.absence import Absence

REASON = "the flow gave them back for a while"


@contextmanager
def released() -> Iterator[None]:
    """Give back what the run holds, and take it again before the code goes on: `with released(): pause_flow_run()`.

    It queues again by the run's priority, without a time-out. Tasks of the run that wait for slots meanwhile go on
    waiting; those that have theirs keep them. Does nothing outside of runs under limits. Stands in the flow itself:
    raises ClaimError inside of a limited task or a `slots` block, and StoreUnavailable as a claim does.
    """
    run = _Run.here()
    if run is None:
        yield
        return
    run.give_back()
    stand_under(run.outside)
    try:
        yield
    except Exception:
        stand_under(run.come_back())  # whoever catches it goes on inside the run
        raise
    except BaseException:
        run.end()
        raise
    stand_under(run.come_back())


@asynccontextmanager
async def areleased() -> AsyncIterator[None]:
    """As `released`, without blocking the event loop: `async with areleased(): await apause_flow_run()`."""
    run = await gate.off_loop(_Run.here)
    if run is None:
        yield
        return
    await run.engine.off_loop(run.give_back)
    stand_under(run.outside)
    try:
        yield
    except Exception:
        stand_under(await run.come_back_async())
        raise
    except BaseException:
        run.end()
        raise
    stand_under(await run.come_back_async())


class _Run:
    """The one around the code here, which is absent for a while. `outside` is what the block stands under."""

    def __init__(self, engine: Engine, standing: Standing, lease: Lease, absence: Absence) -> None:
        self.engine = engine
        self.outside = Standing(priority=standing.priority, ended=standing.ended)
        self._standing, self._lease, self._absence = standing, lease, absence
        self._claim: Claim | None = None

    @classmethod
    def here(cls) -> Self | None:
        """None where no run under limits is around, or its slots are released already."""
        engine = installation.engine()
        if engine is None or engine.settings.enforcement == "off":
            return None
        standing = standing_here()
        if standing is NOWHERE:
            standing = adoption.standing(engine, Limits())
        if standing.run_id is None:
            return None
        lease, absence = standing.lease, standing.absence
        if lease is None or absence is None or lease.claim_id != standing.run_claim_id:
            raise ClaimError(
                "released() gives back what the run holds: put it into the flow itself, outside of limited tasks, "
                "of slots blocks and of flows with pools that the run does not hold"
            )
        return cls(engine, standing, lease, absence)

    def give_back(self) -> None:
        """A store that is away makes nothing fail: the run then keeps its slots, or they expire."""
        logger = facts.run_logger()
        try:
            row = next(row for row in self.engine.snapshot().claims if row.claim.claim_id == self._lease.claim_id)
            self._claim = replace(row.claim, claim_id=str(uuid.uuid4()))
            self._absence.begin()
            self._lease.release()
            self.engine.store.end(self._lease.claim_id, reason=REASON)  # its worker holds it beside this process
        except StopIteration:
            logger.warning("The run has lost its slots, there is nothing to give back")
        except StoreUnavailable as error:
            logger.error("The run's slots could not be given back for a while: %s", error)
        else:
            logger.info("The run has given its slots back for a while")

    def come_back(self) -> Standing:
        """Wait for the run's slots; what the flow stands under from now on. Raises as Engine.acquire."""
        if (passage := self._passage()) is None:
            return self._standing
        try:
            return self._back(passage.acquire().standing)
        finally:
            self._absence.end(passage.lease)

    async def come_back_async(self) -> Standing:
        """As `come_back`, on an event loop."""
        if (passage := self._passage()) is None:
            return self._standing
        try:
            return self._back((await passage.acquire_async()).standing)
        finally:
            self._absence.end(passage.lease)

    def end(self) -> None:
        """The flow is torn down: it does not come back."""
        self._absence.end(None)

    def _passage(self) -> Passage | None:
        claim, standing = self._claim, replace(self._standing, lease=None)
        if claim is None:
            return None
        return Passage(
            self.engine, Limits(), facts.run_logger(), "flow", self.outside, lambda _outer: (claim, standing)
        )

    def _back(self, standing: Standing) -> Standing:
        standing = replace(standing, ended=self._standing.ended, absence=self._absence)
        adoption.stands_under(standing)
        return standing
