"""T7: a holder stopped by SIGSTOP beyond its TTL, then continued.

Bars: told within 1 s of going on; whatever it then asks of the store as a holder is refused.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

import penstock
import pytest
from configuring import configure
from penstock import LeaseLost
from penstock.errors import StoreUnavailable
from penstock.settings import Settings, StoreTimes
from penstock.store.contract import Owner, Result

from faults.children import Children, Tell
from faults.record import LONG, Record

TTL_SECONDS = 2.0
HOLDERS, ROUNDS = (8, 10) if LONG else (3, 1)


@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_a_stopped_holder_is_told_within_a_second_of_going_on_and_its_epoch_is_stale(
    store_url: str, record: Record, children: Children
) -> None:
    told_after, asked, heard = list[float](), 0, list[str]()
    with penstock.connect(store_url) as other:
        configure(other, pools={"limits": {"a": HOLDERS}})
        for _ in range(ROUNDS):
            go = multiprocessing.Event()
            stopped = [children.bear(lambda tell, go=go: _be_stopped(store_url, go, tell)) for _ in range(HOLDERS)]
            epochs = [child.wait_for("holds")["epoch"] for child in stopped]
            for child in stopped:
                child.send(signal.SIGSTOP)
            patience = TTL_SECONDS + StoreTimes().grace_seconds + 30
            with other.hold(f"a:{HOLDERS}", wait_timeout_seconds=patience) as lease:
                assert min(lease.fences["pool:a"].values()) > max(epochs)
                went_on = time.monotonic()
                for child in stopped:
                    child.send(signal.SIGCONT)
                told_after += [child.wait_for("told")["at"] - went_on for child in stopped]
                go.set()
                for child in stopped:
                    answers = child.wait_for("asked")["answers"]
                    asked += len(answers)
                    heard += [name for name, taken in answers.items() if taken]
                assert not lease.lost
                assert [row.held for row in other.store.limit_rows() if row.key == "pool:a"] == [HOLDERS]
            for child in stopped:
                child.join()
    done = f"{len(told_after)} stopped until others had their slots"
    record(done=f"{done}, {asked} calls then", what="stale epochs heard", figure=len(heard), bar=0)
    record(done=done, what="told after going on", figure=max(told_after), bar=1, unit="s")
    assert heard == []


def _be_stopped(url: str, go: Event, tell: Tell) -> None:
    """Hold and say the epoch; when told of the loss say so; then try everything that only a holder may do."""
    engine = penstock.connect(url, settings=Settings(session_ttl_seconds=TTL_SECONDS))
    lease, told = engine.acquire(engine.claim("a")), threading.Event()
    lease.on_lost.append(lambda _: (tell("told"), told.set()))
    tell("holds", epoch=next(iter(lease.fences["pool:a"].values())))
    assert go.wait(120)
    assert told.wait(10)
    assert lease.lost
    store, session_id = engine.store, lease.session_id or ""
    version, _ = _asked(lambda: engine.configuration(fresh=True))
    demands = engine.demands(lease.claim, engine.configuration()[1])
    answers = {
        "touch": _asked(lambda: store.touch(lease.claim_id, demands, version=version, owner=Owner(session_id)).result)
        is Result.HELD,
        "beat": _asked(lambda: store.beat(session_id, lambda: [lease.claim_id])),
        "hand over": _asked(lambda: store.hand_over(lease.claim_id, session_id, ticket_seconds=60)),
        "release": _asked(lambda: store.release(lease.claim_id, session_id)),
    }
    try:
        _asked(lambda: lease.hand_over(seconds=60))
        answers["lease.hand_over"] = True
    except LeaseLost:
        answers["lease.hand_over"] = False
    tell("asked", answers=answers)


def _asked(ask: Callable[[], Any]) -> Any:
    """The store's answer: a connection that was cut off while its process was stopped says so once."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return ask()
