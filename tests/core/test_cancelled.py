"""A wait on an event loop that is cancelled leaves nothing behind, whatever else happens in that moment."""

from __future__ import annotations

import asyncio

import pytest
from penstock import changes
from penstock.config import PoolLimit
from situations import CALM, NewEngine


@pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_comes_together_with_the_wake_up_counts(new_engine: NewEngine, turns: int) -> None:
    """It comes so many turns of the loop after it. Else nobody holds the slot, as long as the process lives."""
    engine = new_engine(settings=CALM)
    changes.set_pool(engine, "a", PoolLimit(limit=1))

    async def cancelled() -> None:
        lease = await engine.acquire_async(engine.claim("a"))
        waiting = asyncio.create_task(engine.acquire_async(engine.claim("a", op_id="waiter")))
        while not (waiters := await asyncio.to_thread(lambda: engine.status()["waiters"])):
            await asyncio.sleep(0.01)
        engine.wakeups.wake([waiters[0]["claim_id"]])
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.to_thread(lease.release)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled())
    with engine.hold("a", wait_timeout_seconds=10):
        assert engine.status()["waiters"] == []


def test_what_goes_wrong_after_a_cancellation_is_in_the_log(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it any more; it went unheard."""
    engine = new_engine(settings=CALM)
    changes.set_pool(engine, "a", PoolLimit(limit=0))

    async def cancelled() -> None:
        request = engine.request(engine.claim("a"))
        waiting = asyncio.create_task(request.acquire_async())
        while not request.queued:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(engine.store, "release", lambda *_, **__: 1 / 0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled())
    assert engine._threads is not None
    engine._threads.shutdown()
    assert "could not be given up" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()  # the session ends after this
