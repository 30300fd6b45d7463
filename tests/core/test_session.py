"""The holder's own knowledge of its loss: before the store may grant again, and never undone."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.hooks import plugin_manager
from penstock.settings import Settings
from penstock.store.memory import MemoryStore


class Unreachable(MemoryStore):
    """A store that goes away for beats."""

    away = False

    def beat(self, session_id: str, known: Any) -> bool:
        if self.away:
            raise StoreUnavailable("away")
        return super().beat(session_id, known)


def test_a_holder_cut_off_from_the_store_is_told_before_its_ttl_is_over() -> None:
    store, told = Unreachable(), threading.Event()
    engine = Engine(store, settings=Settings(session_ttl_seconds=1.5), plugins=plugin_manager())
    lease = engine.acquire(engine.claim("a"))
    lease.on_lost.append(lambda _: told.set())
    begun = time.monotonic()
    store.away = True
    assert told.wait(10)
    assert time.monotonic() - begun < 1.5
    assert lease.lost
    store.away = False
    assert lease.lost, "lost stays lost"
    engine.session_id()
    engine.close()


def test_beats_keep_a_lease_alive_over_many_ttls() -> None:
    engine = Engine(MemoryStore(), settings=Settings(session_ttl_seconds=0.6), plugins=plugin_manager())
    lease = engine.acquire(engine.claim("a"))
    expires = {row.expires_at for row in engine.snapshot().sessions}
    deadline = time.monotonic() + 10
    while len(expires) < 6:
        assert time.monotonic() < deadline
        expires |= {row.expires_at for row in engine.snapshot().sessions}
        time.sleep(0.02)
    assert not lease.lost
    engine.close()


def test_a_forked_child_starts_clean(store: Any, new_engine: Any) -> None:
    engine = new_engine()
    lease = engine.acquire(engine.claim("a"))
    reads, writes = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            mine = engine.session_id()
            outcome = mine != lease.session_id and engine.leases.find(lease.claim_id) is None
            engine.close()
            os.write(writes, b"1" if outcome else b"0")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reads, 1) == b"1"
    assert not lease.lost
    lease.release()
