"""T3: kill -9 between a release and its look for waiters. Bar: the waiter is granted within 1 s all the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import penstock
import pytest
from configuring import configure
from penstock.decision import Granted, Waiting
from penstock.store.sql import SqlStore
from situations import until

from faults.children import Children, Tell
from faults.record import LONG, Record

ROUNDS = 100 if LONG else 5


@pytest.mark.timeout(60 + 5 * ROUNDS)
def test_a_waiter_is_granted_though_the_holder_died_before_it_looked(
    store_url: str, record: Record, children: Children
) -> None:
    delays = []
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": 1}})
        while len(delays) < ROUNDS:
            let_go = multiprocessing.Event()

            def hold_and_die(tell: Tell, let_go: multiprocessing.synchronize.Event = let_go) -> None:
                SqlStore._look_after_commit = lambda *_, **__: _die(tell)  # type: ignore[method-assign]
                with penstock.connect(store_url) as own:
                    lease = own.acquire(own.claim("a"))
                    tell("holds")
                    let_go.wait(60)
                    lease.release()

            holder = children.bear(hold_and_die)
            holder.wait_for("holds")
            request = engine.request(engine.claim("a"))
            assert isinstance(request.step(), Waiting)
            let_go.set()
            lease = request.acquire(wait_timeout_seconds=30)
            granted_at = time.monotonic()
            lease.release()
            until(holder.ended)
            if holder.status == signal.SIGKILL:  # else the waiter had been granted before there was anything to look at
                delays.append(granted_at - holder.wait_for("dies")["at"])
        decision = engine.try_acquire(engine.claim("a"))
        assert isinstance(decision, Granted)
    record(done=f"{ROUNDS} killed there", what="waiter granted after", figure=max(delays), bar=1, unit="s")


def _die(tell: Tell) -> None:
    tell("dies")
    os.kill(os.getpid(), signal.SIGKILL)
