"""T6: a holder cut off from the database, one way and both. Bar: it is told before anybody else is granted, always."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import penstock
import pytest
from configuring import configure
from penstock.settings import Settings, StoreTimes
from proxy import TcpProxy
from situations import in_threads
from sqlalchemy.engine import make_url

from faults.record import LONG, Record

TTL_SECONDS = 3.0
HOLDERS_EACH, ROUNDS = (5, 5) if LONG else (2, 1)
WAYS: dict[str, Callable[[TcpProxy], None]] = {
    "connections closed": lambda proxy: proxy.cut(),
    "nothing arrives either way": lambda proxy: proxy.swallow(),
    "nothing arrives at the database": lambda proxy: proxy.swallow(replies=False),
    "nothing comes back": lambda proxy: proxy.swallow(asks=False),
}


@pytest.mark.timeout(120 * ROUNDS)
@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_a_holder_cut_off_is_told_before_anybody_else_is_granted(store_url: str, record: Record) -> None:
    holders = [(way, number) for way in WAYS for number in range(HOLDERS_EACH)]
    ahead: dict[str, list[float]] = {way: [] for way in WAYS}
    with penstock.connect(store_url) as other:
        configure(other, pools={"default_limit": 1})

        def one(number: int) -> tuple[str, float]:
            way, holder = holders[number]
            return way, _told_ahead(other, store_url, f"{way}-{holder}".replace(" ", "-"), WAYS[way])

        for _ in range(ROUNDS):
            for way, seconds in in_threads(len(holders), one):
                ahead[way].append(seconds)
    for way, seconds_ahead in ahead.items():
        told = 100 * sum(seconds > 0 for seconds in seconds_ahead) / len(seconds_ahead)
        least = min(seconds_ahead)
        done = f"{way}, {len(seconds_ahead)} times; told {least:.1f} s before the next grant or earlier"
        record(done=done, what="told first", figure=told, bar=100, unit="%", most=False)
    assert all(seconds > 0 for seconds_ahead in ahead.values() for seconds in seconds_ahead), ahead


def _told_ahead(other: penstock.engine.Engine, url: str, pool: str, cut_off: Callable[[TcpProxy], None]) -> float:
    """How many seconds before the next holder was granted the first one knew of its loss."""
    given, told, told_at = make_url(url), threading.Event(), list[float]()
    with ExitStack() as stack:
        proxy = stack.enter_context(TcpProxy(given.host or "", given.port or 0))
        through = given.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        engine = penstock.connect(through, settings=Settings(session_ttl_seconds=TTL_SECONDS))

        def tell(_: object) -> None:
            told_at.append(time.monotonic())
            told.set()

        while (lease := engine.acquire(engine.claim(pool))).lost:  # this machine was too slow for the TTL
            lease.release()
        lease.on_lost.append(tell)
        cut_off(proxy)
        patience = TTL_SECONDS + StoreTimes().grace_seconds + 20
        next_lease = stack.enter_context(other.hold(pool, wait_timeout_seconds=patience))
        granted_at = time.monotonic()
        assert told.wait(20), "it was never told"
        assert lease.lost
        (mine,), (theirs,) = (one.fences[f"pool:{pool}"].values() for one in (lease, next_lease))
        assert theirs > mine
        return granted_at - told_at[0]
