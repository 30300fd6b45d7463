"""T4: the database restarts under load: fast, immediate, kill -9.

Bars: no limit is passed; no grant that somebody was told of is lost; all go on within 5 s of the database being back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import penstock
import pytest
from configuring import configure
from intervals import most_at_once
from own_servers import OwnServer
from penstock import StoreUnavailable
from penstock.engine import Engine
from penstock.store.contract import ClaimState
from situations import until

from faults.children import Child, Children, Tell
from faults.record import LONG, Record

EACH = 20 if LONG else 1
WORKERS, CAPACITY, KEPT = 8, 4, 3


@pytest.mark.timeout(120 + 60 * EACH)
@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_a_restart_loses_nothing(
    store_kind: str,
    own_server: OwnServer,
    own_url: str,
    record_on: Callable[[str, str], Record],
    children: Children,
) -> None:
    record = record_on(store_kind, own_url)
    with penstock.connect(own_url) as engine:
        configure(engine, pools={"limits": {"a": CAPACITY, "kept": KEPT}})
        kept = [engine.acquire(engine.claim("kept")) for _ in range(KEPT)]
        workers = [children.bear(lambda tell: _work(own_url, tell)) for _ in range(WORKERS)]
        for worker in workers:
            worker.wait_for("begin")
        resumed: dict[str, list[float]] = {way: [] for way in own_server.ways}
        for _ in range(EACH):
            for way, signal in own_server.ways.items():
                own_server.stop(signal)
                own_server.start()
                back_at = time.monotonic()
                _wait_until_all_hold(workers, back_at)
                firsts = [_held_since(worker.events, back_at) or 0.0 for worker in workers]
                resumed[way].append(max(firsts) - back_at)
        for worker in workers:
            worker.kill()
        over = max(0, most_at_once(children.intervals()) - CAPACITY)
        lost = _lost(engine, children)
        until(lambda: not any(row.held for row in engine.store.limit_rows() if row.key == "pool:a"), 60)
        held = {row.claim.claim_id: row.slots for row in engine.snapshot().claims if row.state is ClaimState.HELD}
        lost += sum(lease.lost or held.get(lease.claim_id) != lease.slots for lease in kept)
        leases = len(children.intervals())
        for lease in kept:
            lease.release()
    done = f"{EACH} each ({', '.join(own_server.ways)}) under {WORKERS} workers, {leases} leases and {KEPT} throughout"
    record(done=done, what="over the limit", figure=over, bar=0)
    record(done=done, what="grants lost that were told of", figure=lost, bar=0)
    for way, seconds in resumed.items():
        record(done=f"{way}, {EACH} times", what="every worker holds again", figure=max(seconds), bar=5, unit="s")
    assert over == 0
    assert lost == 0


def _wait_until_all_hold(workers: Sequence[Child], at: float, seconds: float = 60.0) -> None:
    """Each since that time; the error says what those did instead that do not."""
    until = time.monotonic() + seconds
    while late := [worker for worker in workers if not _held_since(worker.events, at)]:
        ended = [worker.events[-1] for worker in late if worker.ended()]
        assert not ended, f"a worker ended: {ended}"
        doing = "\n".join(str(worker.events[-5:]) for worker in late)
        assert time.monotonic() < until, f"{len(late)} do not hold since {at}:\n{doing}"
        time.sleep(0.01)


def _held_since(events: list[dict[str, object]], at: float) -> float | None:
    times = (said["at"] for said in reversed(events) if said["event"] == "begin")
    since = [time for time in times if isinstance(time, float) and time > at]
    return min(since, default=None)


def _lost(engine: Engine, children: Children) -> int:
    """Of the grants that somebody was told of, those that the database has forgotten."""
    granted = {row.claim_id for row in engine.store.history()}
    told = {said["claim"] for child in children.all for said in child.events if said["event"] == "begin"}
    return len(told - granted)


def _work(url: str, tell: Tell) -> None:
    with penstock.connect(url) as engine:
        while True:
            try:
                lease = engine.acquire(engine.claim("a"))
            except StoreUnavailable as error:
                tell("away", error=str(error))
                continue
            tell("begin", claim=lease.claim_id)
            time.sleep(0.02)
            tell("end")
            try:
                lease.release()
            except StoreUnavailable as error:  # the next beat frees it
                tell("unreleased", error=str(error))
