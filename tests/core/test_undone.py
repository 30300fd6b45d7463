"""Transactions that the server ended because this machine did not let us run are done again, others are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import psycopg
import pymysql
import pytest
from penstock.claim import Claim, ClaimKind
from penstock.errors import StoreUnavailable
from penstock.rules import Demand, Source
from penstock.store import granting, limits
from penstock.store.contract import Deployment, Event, Mode, Outcome, Owner, Result, Session
from penstock.store.database import Undone
from penstock.store.mysql import MysqlDialect
from penstock.store.postgresql import PostgresqlDialect
from penstock.store.sql import SqlStore
from sqlalchemy import Connection, create_engine, text
from stores import SQL_KINDS


@pytest.mark.parametrize(
    ("message", "undone"),
    [
        ("consuming input failed: server closed the connection unexpectedly", True),
        ("the connection is lost", True),
        ('connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused', False),
    ],
)
def test_a_connection_cut_off_on_postgresql(message: str, undone: bool) -> None:
    assert PostgresqlDialect().was_undone(psycopg.OperationalError(message)) is undone


@pytest.mark.parametrize(("number", "undone"), [(2006, True), (2013, True), (1213, True), (2003, False), (1045, False)])
def test_a_connection_cut_off_on_mariadb(number: int, undone: bool) -> None:
    assert MysqlDialect().was_undone(pymysql.err.OperationalError(number, "says why")) is undone


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_a_transaction_that_the_server_ended_in_the_middle_is_done_again(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process finds it that was not let run for longer than the store lets a transaction idle."""
    to_end = ["the first try"]
    try_grant_lock = type(store.dialect).try_grant_lock

    def try_and_be_ended(dialect: Any, connection: Connection) -> bool:
        locked = try_grant_lock(dialect, connection)
        if to_end:
            to_end.pop()
            end_this_session(connection)
        return locked

    monkeypatch.setattr(type(store.dialect), "try_grant_lock", try_and_be_ended)
    assert store._grant_batch() is not None
    assert not to_end


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_a_pass_that_the_server_ended_before_it_could_read_is_done_again(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads with the driver's own cursor, whose errors say nothing to SQLAlchemy."""
    to_end, settle_drained = ["the first try"], limits.settle_drained

    def settle_and_be_ended(connection: Connection) -> None:
        settle_drained(connection)
        if to_end:
            to_end.pop()
            end_this_session(connection)

    monkeypatch.setattr(limits, "settle_drained", settle_and_be_ended)
    assert store._grant_batch() is not None
    assert not to_end


@pytest.mark.parametrize("store_kind", SQL_KINDS, indirect=True)
def test_what_was_committed_stands_though_the_pass_after_it_fails(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full: the release had come through and raised, and who had queued ran without limits."""
    mine, (a, b) = session(store), (replace(DEMANDS[0], key=f"pool:{name}") for name in "ab")
    version = store.configuration().version
    first, both, behind = claim(), claim(), claim()

    def ask_for(asked: Claim, *demands: Demand) -> Result:
        return store.acquire(asked, demands, version=version, owner=Owner(mine)).result

    def full(*_: object) -> None:
        raise store._engine.dialect.loaded_dbapi.OperationalError("database or disk is full")

    assert ask_for(first, a) is Result.HELD
    assert ask_for(both, a, b) is Result.WAITING
    with monkeypatch.context() as patched:
        patched.setattr(granting, "grant", full)
        with pytest.raises(StoreUnavailable, match="full"):
            store.grant_pass()
        assert ask_for(behind, b) is Result.WAITING
        assert store.touch(behind.claim_id, [b], version=version, owner=Owner(mine)).result is Result.WAITING
        assert store.release(first.claim_id, mine)
    assert holders(store) == []
    assert store.grant_pass() == 1
    assert holders(store) == [both.claim_id] * 2


@pytest.mark.parametrize("store_kind", SQL_KINDS, indirect=True)
def test_what_was_committed_stands_though_nobody_can_be_told(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that does not wait was let in beside one that did, and raised."""
    mine, demands = session(store), [replace(DEMANDS[0], capacity=2)]
    version = store.configuration().version

    def ask_for(asked: Claim, slots: int, mode: Mode) -> Result:
        wanted = [replace(demand, slots=slots) for demand in demands]
        return store.acquire(asked, wanted, version=version, owner=Owner(mine), mode=mode).result

    def broken(*_: object, **__: object) -> None:
        raise store._engine.dialect.loaded_dbapi.OperationalError("broken")

    both, waiting, newcomer = claim(), claim(), claim()
    assert ask_for(both, 2, Mode.WAIT) is Result.HELD
    assert ask_for(waiting, 1, Mode.WAIT) is Result.WAITING
    with monkeypatch.context() as patched:
        patched.setattr(store, "_look_after_commit", lambda **_: set())
        assert store.release(both.claim_id, mine)
    monkeypatch.setattr(store.dialect, "notify", broken)
    assert ask_for(newcomer, 1, Mode.TRY) is Result.HELD
    assert sorted(holders(store)) == sorted([waiting.claim_id, newcomer.claim_id])


@pytest.mark.parametrize("store_kind", SQL_KINDS, indirect=True)
def test_what_a_sweep_has_ended_is_told_though_the_pass_after_it_fails(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**_: object) -> None:
        raise StoreUnavailable("away")

    assert ask(store, asked := claim(), None, ticket_seconds=1.0).result is Result.HELD
    store.clock_shift += 2_000_000
    monkeypatch.setattr(store, "_grant", away)
    assert [gone.claim.claim_id for gone in store.sweep().expired] == [asked.claim_id]


def configure(store: SqlStore) -> None:
    version = store.configuration().version
    assert store.configure({"default": version}, expected_version=version, by="me", origin="here") == version + 1
    there = store.configuration()
    assert (there.version, there.document) == (version + 1, {"default": version})
    assert [row.event for row in store.history()] == [Event.CHANGED] * (version + 1)


def session(store: SqlStore) -> str:
    store.open_session(Session(session_id := str(uuid4()), "core", "test", 1, "here", 60))
    return session_id


def open_session(store: SqlStore) -> None:
    session_id = session(store)
    assert store.beat(session_id, list)
    store.close_session(session_id)
    assert not store.beat(session_id, list)


def register(store: SqlStore) -> None:
    store.register(installation := Deployment("core", "test", "this one", 0))
    assert [(d.host, d.name, d.fingerprint) for d in store.deployments()] == [("core", "test", "this one")]
    assert store.forget(installation.host, installation.name)
    assert store.deployments() == ()
    assert not store.forget(installation.host, installation.name)


DEMANDS = (Demand("pool:a", 1, 1, Source.EXPLICIT),)


def claim(kind: ClaimKind = ClaimKind.OP) -> Claim:
    return Claim(kind=kind, host="core", deployment="test", run_id=str(uuid4()), op_id="op")


def ask(store: SqlStore, asked: Claim, session_id: str | None, mode: Mode = Mode.WAIT, **owner: float) -> Outcome:
    version = store.configuration().version
    return store.acquire(asked, DEMANDS, version=version, owner=Owner(session_id, **owner), mode=mode)


def speak(store: SqlStore, claim_id: str, session_id: str | None) -> Outcome:
    return store.touch(claim_id, DEMANDS, version=store.configuration().version, owner=Owner(session_id))


def holders(store: SqlStore) -> list[str]:
    """One for each slot that is held."""
    return [row.claim.claim_id for row in store.snapshot().claims for _ in row.slots]


def events(store: SqlStore, claim_id: str) -> list[Event]:
    return [row.event for row in store.history() if row.claim_id == claim_id]


def acquire_and_release(store: SqlStore) -> None:
    outcome = ask(store, asked := claim(), mine := session(store))
    assert (outcome.result, [held.limit for held in outcome.slots]) == (Result.HELD, ["pool:a"])
    assert holders(store) == [asked.claim_id]
    assert store.release(asked.claim_id, mine)
    assert holders(store) == []
    assert events(store, asked.claim_id) == [Event.GRANTED, Event.RELEASED]


def wait_and_be_granted(store: SqlStore) -> None:
    mine, first, second = session(store), claim(), claim()
    assert ask(store, first, mine).result is Result.HELD
    assert ask(store, second, mine).result is Result.WAITING
    assert store.release(first.claim_id, mine)
    assert holders(store) == [second.claim_id]
    assert speak(store, second.claim_id, mine).result is Result.HELD
    assert store.release(second.claim_id, mine)
    assert events(store, second.claim_id) == [Event.GRANTED, Event.RELEASED]


def decide_at_once(store: SqlStore) -> None:
    mine, first, skipped, beside = session(store), claim(ClaimKind.RUN), claim(ClaimKind.RUN), claim()
    assert ask(store, first, mine, Mode.TRY).result is Result.HELD
    assert ask(store, claim(), mine, Mode.TRY).result is Result.NO_ROOM
    assert ask(store, skipped, mine, Mode.SKIP).result is Result.NO_ROOM
    assert events(store, skipped.claim_id) == [Event.SKIPPED]
    assert ask(store, beside, mine, Mode.OBSERVE).result is Result.HELD
    assert sorted(holders(store)) == sorted([first.claim_id, beside.claim_id])
    for asked in (first, beside, skipped):
        assert store.end(asked.claim_id, reason="for the test")
    assert holders(store) == []


def share_a_run(store: SqlStore) -> None:
    sessions = session(store), session(store)
    run = claim(ClaimKind.RUN)
    for mine in sessions:
        assert ask(store, run, mine).result is Result.HELD
    for mine in sessions:
        assert holders(store) == [run.claim_id]
        assert store.release(run.claim_id, mine)
    assert holders(store) == []


def hand_over_and_adopt(store: SqlStore) -> None:
    mine, other = session(store), session(store)
    (before,) = ask(store, asked := claim(), mine).slots
    assert store.hand_over(asked.claim_id, mine, ticket_seconds=60)
    assert store.renew([asked.claim_id], ticket_seconds=90) == {asked.claim_id}
    adopted = speak(store, asked.claim_id, other)
    assert (adopted.result, adopted.slots[0].epoch > before.epoch) == (Result.HELD, True)
    assert not store.release(asked.claim_id, mine)
    assert not store.hand_over(asked.claim_id, mine, ticket_seconds=60)
    assert store.release(asked.claim_id, other)
    assert events(store, asked.claim_id) == [Event.GRANTED, Event.ADOPTED, Event.RELEASED]


def sweep(store: SqlStore) -> None:
    asked = claim()
    assert ask(store, asked, None, ticket_seconds=1.0).result is Result.HELD
    store.clock_shift += 2_000_000
    assert [gone.claim.claim_id for gone in store.sweep().expired] == [asked.claim_id]
    assert store.sweep().expired == ()
    assert holders(store) == []
    assert events(store, asked.claim_id) == [Event.GRANTED, Event.EXPIRED]


WRITES = [
    configure,
    open_session,
    register,
    acquire_and_release,
    wait_and_be_granted,
    decide_at_once,
    share_a_run,
    hand_over_and_adopt,
    sweep,
]


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_whatever_is_written_outlasts_being_cut_off_once(
    store: SqlStore, write: Callable[[SqlStore], None], committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the commit the server undoes it; after it only the answer is lost, and the next try finds it done.

    Once at every place, one after the other.
    """
    turns, turn = count(), 0

    def cut_off_once(opened: Callable[..., AbstractContextManager[Any]]) -> Callable[..., AbstractContextManager[Any]]:
        @contextmanager
        def opened_once(**options: Any) -> Iterator[Any]:
            cut_off = next(turns) == turn
            if cut_off and opened == cursor and not committed:  # on it a commit is part of what is sent
                raise Undone("cut off before it was sent")
            with opened(**options) as lent:
                yield lent
                if cut_off and not committed:
                    raise Undone("cut off before its commit")
            if cut_off and committed:
                raise Undone("cut off after its commit")

        return opened_once

    transaction, cursor = store.transaction, store.cursor
    monkeypatch.setattr(store, "transaction", cut_off_once(transaction))
    monkeypatch.setattr(store, "cursor", cut_off_once(cursor))
    while turn == 0 or next(turns) > turn:
        turns = count()
        try:
            write(store)
        except AssertionError as error:
            raise AssertionError(f"cut off at turn {turn}: {error}") from error
        turn += 1


def end_this_session(connection: Connection) -> None:
    """As the server does it; the session does not know yet. PostgreSQL says why it did: an idle transaction."""
    with closing(create_engine(connection.engine.url).raw_connection()) as other, closing(other.cursor()) as cursor:
        if connection.dialect.name == "postgresql":
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            connection.execute(text("SET idle_in_transaction_session_timeout = 1"))
            while cursor.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
                other.commit()
        else:
            cursor.execute("KILL %s", [connection.scalar(text("SELECT connection_id()"))])


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("write", [configure, open_session, register])
def test_a_connection_that_was_ended_while_nobody_used_it_is_made_anew(
    store: SqlStore, write: Callable[[SqlStore], None]
) -> None:
    """As after a restart of the server: whoever comes first finds every connection dead, and nothing is to be seen."""
    store.configuration()
    other = create_engine(store._engine.url)
    with other.connect() as connection:
        if connection.dialect.name == "postgresql":
            others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            end = "SELECT pg_terminate_backend({})"
        else:
            others = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
            end = "KILL {}"
        for number in connection.scalars(text(others)).all():
            connection.exec_driver_sql(end.format(number))
    other.dispose()
    write(store)
