"""The holder's own knowledge of its loss: before the store may grant again, and never undone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.hooks import plugin_manager
from penstock.settings import Settings
from penstock.store.forking import ForkGate
from penstock.store.granting import Batch
from penstock.store.memory import MemoryStore
from penstock.store.sql import SqlStore
from situations import until


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


class Crowded(SqlStore):
    """A store that is slow, and where others come and go so fast that a grant pass always finds somebody."""

    beats, crowded = 0, False

    def _grant_batch(self) -> Batch | None:
        if not self.crowded:
            return super()._grant_batch()
        time.sleep(0.05)
        return Batch(["somebody else's"])

    def beat(self, session_id: str, known: Any) -> bool:
        self.beats += 1
        return super().beat(session_id, known)


def test_a_beat_does_not_wait_until_nobody_is_left_to_be_granted(tmp_path: Path) -> None:
    store = Crowded(f"sqlite:///{tmp_path / 'penstock.db'}")
    store.check_schema()
    engine = Engine(store, settings=Settings(session_ttl_seconds=2.0), plugins=plugin_manager())
    with engine.hold("a") as lease:
        store.crowded = True
        store.dialect.look = lambda _: True  # type: ignore[method-assign]
        before = store.beats
        until(lambda: lease.lost or store.beats >= before + 4)
        assert not lease.lost
        store.crowded = False
        del store.dialect.look
    engine.close()


def in_a_child(ask: Callable[[], object]) -> str:
    """What it says there; "" where it cannot."""
    reads, writes = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writes, str(ask()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    os.waitpid(pid, 0)
    with os.fdopen(reads) as answer:
        return answer.read()


def test_a_forked_child_has_nothing_of_its_parents_before_it_asks(store: Any, new_engine: Any) -> None:
    """Of two threads that asked first there, one could still find its parent's session, and claim under that."""
    engine = new_engine()
    lease = engine.acquire(engine.claim("a"))
    assert in_a_child(lambda: (engine.leases.known(), engine._session.current, lease.lost)) == "(set(), None, True)"
    assert not lease.lost
    lease.release()


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"])
def test_a_forked_child_that_only_looks_has_a_connection_of_its_own(store_kind: str, store: Any, engine: Any) -> None:
    """It read the answers to its parent's questions: only who claimed there got connections of its own."""

    def connection() -> object:
        engine.reasons("none")
        with store.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()" if store_kind == "postgresql" else "SELECT connection_id()")
            (found,) = cursor.fetchone()
            cursor.connection.rollback()
        return found

    mine = str(connection())
    assert mine == str(connection())
    assert in_a_child(connection) not in (mine, "")


def test_of_two_forks_at_once_none_finds_an_open_file() -> None:
    """The first that was through let everybody in again, while the second had not forked yet."""
    gate, inside = ForkGate(lambda: None), threading.Event()

    def enter() -> None:
        with gate:
            inside.set()

    gate.shut()
    gate.shut()
    gate.open()
    thread = threading.Thread(target=enter)
    thread.start()
    try:
        assert not inside.wait(0.2)
    finally:
        gate.open()
    assert inside.wait(30)
    thread.join(30)


def test_a_store_that_is_made_while_another_thread_forks_can_be_used_then() -> None:
    """It was let in once more than it had been kept out, and waited for ever."""
    inside, leave = threading.Event(), threading.Event()
    before = ForkGate(lambda: None)
    made: list[ForkGate] = []

    def enter_and_make() -> None:
        with before:
            inside.set()
            until(lambda: before._forking)
            made.append(ForkGate(lambda: None))

    def enter() -> None:
        with made[0]:
            leave.set()

    making, entering = threading.Thread(target=enter_and_make), threading.Thread(target=enter, daemon=True)
    making.start()
    assert inside.wait(30)
    assert in_a_child(lambda: "forked") == "forked"
    making.join(30)
    entering.start()
    assert leave.wait(10)
