"""A holder that is cut off, ended or stopped: it knows before the store may grant again, or its epochs stop it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import penstock
import pytest
from configuring import configure
from penstock import LeaseLost
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings, StoreTimes
from penstock.store.contract import Owner, Result
from proxy import TcpProxy
from sqlalchemy.engine import make_url

TTL_SECONDS = 2.0
servers = pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
sql_stores = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


@servers
@pytest.mark.parametrize("how", ["cut", "swallow"])
def test_a_holder_cut_off_is_told_before_anybody_else_is_granted(store_url: str, how: str) -> None:
    url, told, told_at = make_url(store_url), threading.Event(), list[float]()
    with penstock.connect(store_url) as other, TcpProxy(url.host or "", url.port or 0) as proxy:
        configure(other, pools={"limits": {"a": 1}})
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        engine = penstock.connect(through, settings=Settings(session_ttl_seconds=TTL_SECONDS))
        lease = engine.acquire(engine.claim("a"))

        def tell(_: object) -> None:
            told_at.append(time.monotonic())
            told.set()

        lease.on_lost.append(tell)
        getattr(proxy, how)()
        with other.hold("a", wait_timeout_seconds=TTL_SECONDS + StoreTimes().grace_seconds + 10) as next_lease:
            granted_at = time.monotonic()
            assert told_at, "the next holder was granted before the first one was told"
            assert told_at[0] < granted_at
            assert lease.lost
            (mine,), (theirs,) = lease.fences["pool:a"].values(), next_lease.fences["pool:a"].values()
            assert theirs > mine
        assert lease.lost, "lost stays lost"


def test_a_holder_whose_session_was_ended_is_told_by_the_next_beat(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(settings=Settings(session_ttl_seconds=1.0))
    lease, told = engine.acquire(engine.claim("a")), threading.Event()
    lease.on_lost.append(lambda _: told.set())
    store.close_session(lease.session_id)
    assert told.wait(10)
    assert lease.lost
    again = engine.acquire(engine.claim("a"))
    assert again.session_id != lease.session_id
    assert lease.lost, "lost stays lost, though the process has a new session"
    again.release()


def test_a_callback_that_fails_keeps_nobody_else_from_being_told(
    store: Any, new_engine: Callable[..., Engine], configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 2}})
    engine, told = new_engine(), list[str]()
    for name in ("first", "second"):
        lease = engine.acquire(engine.claim("a"))
        lease.on_lost += [lambda _: 1 / 0, lambda _, name=name: told.append(name)]  # type: ignore[misc]
    engine.session_is_gone(engine.session_id())
    assert told == ["first", "second"]


@sql_stores
def test_a_stopped_holder_is_told_within_a_second_of_going_on_and_its_epoch_is_stale(store_url: str) -> None:
    with penstock.connect(store_url) as other:
        configure(other, pools={"limits": {"a": 1}})
        reads, writes = os.pipe()
        go_reads, go_writes = os.pipe()
        if (pid := os.fork()) == 0:
            code = 1
            faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
            try:
                code = _be_stopped(store_url, writes, go_reads)
            except BaseException:
                os.write(writes, traceback.format_exc().encode())
            finally:
                os._exit(code)
        os.close(writes)  # so that its end is seen here
        epoch = int(os.read(reads, 100))
        os.kill(pid, signal.SIGSTOP)
        with other.hold("a", wait_timeout_seconds=TTL_SECONDS + StoreTimes().grace_seconds + 20) as lease:
            assert next(iter(lease.fences["pool:a"].values())) > epoch
            os.kill(pid, signal.SIGCONT)
            going_on = time.monotonic()
            told_at = float(os.read(reads, 100))
            assert told_at - going_on < 1.0
            os.write(go_writes, b".")
            assert os.read(reads, 10_000).decode() == "refused"
            assert not lease.lost
            assert [row.held for row in other.store.limit_rows() if row.key == "pool:a"] == [1]
        assert os.waitpid(pid, 0)[1] == 0


def _asked(ask: Callable[[], Any]) -> Any:
    """The store's answer: a connection that was cut off while its process was stopped says so once."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return ask()


def _be_stopped(url: str, writes: int, go_reads: int) -> int:
    """Hold and say the epoch; when told of the loss say when; then try everything that only a holder may do."""
    engine = penstock.connect(url, settings=Settings(session_ttl_seconds=TTL_SECONDS))
    lease, told = engine.acquire(engine.claim("a")), threading.Event()
    lease.on_lost.append(lambda _: (os.write(writes, str(time.monotonic()).encode()), told.set()))
    os.write(writes, str(next(iter(lease.fences["pool:a"].values()))).encode())
    os.read(go_reads, 1)
    assert told.wait(10)
    assert lease.lost
    store, session_id = engine.store, lease.session_id or ""
    version, _ = _asked(lambda: engine.configuration(fresh=True))
    demands = engine.demands(lease.claim, engine.configuration()[1])
    taken = [
        _asked(lambda: store.touch(lease.claim_id, demands, version=version, owner=Owner(session_id)).result)
        is Result.HELD,
        _asked(lambda: store.beat(session_id, lambda: [lease.claim_id])),
        _asked(lambda: store.hand_over(lease.claim_id, session_id, ticket_seconds=60)),
        _asked(lambda: store.release(lease.claim_id, session_id)),
    ]
    try:
        _asked(lambda: lease.hand_over(seconds=60))
    except LeaseLost:
        taken.append(False)
    os.write(writes, b"refused" if taken == [False] * 5 else repr(taken).encode())
    return 0
