"""Transactions that the server ended because this machine did not let us run are done again, others are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

import psycopg
import pymysql
import pytest
from penstock.store.contract import Deployment, Event, Session
from penstock.store.database import Transaction, Undone
from penstock.store.mysql import MysqlDialect
from penstock.store.postgresql import PostgresqlDialect
from penstock.store.sql import SqlStore
from sqlalchemy import Connection, create_engine, text


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


SESSION = Session("session", "core", "test", 1, "here", 60)


def configure(store: SqlStore) -> None:
    version = store.configuration().version
    assert store.configure({"default": 1}, expected_version=version, by="me", origin="here") == version + 1
    there = store.configuration()
    assert (there.version, there.document) == (version + 1, {"default": 1})
    assert [row.event for row in store.history()] == [Event.CHANGED]


def open_session(store: SqlStore) -> None:
    store.open_session(SESSION)
    assert store.beat(SESSION.session_id, list)
    store.close_session(SESSION.session_id)
    assert not store.beat(SESSION.session_id, list)


def register(store: SqlStore) -> None:
    store.register(installation := Deployment("core", "test", "this one", 0))
    assert [(d.host, d.name, d.fingerprint) for d in store.deployments()] == [("core", "test", "this one")]
    store.forget(installation.host, installation.name)
    assert store.deployments() == ()


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("write", [configure, open_session, register])
def test_whatever_is_written_outlasts_being_cut_off_once(
    store: SqlStore, write: Callable[[SqlStore], None], committed: bool, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the commit the server undoes it; after it only the answer is lost, and the next try finds it done."""
    transaction, turns = store.transaction, count()

    @contextmanager
    def cut_off_once(**options: Any) -> Iterator[Transaction]:
        cut_off = next(turns) == turn
        with transaction(**options) as tx:
            yield tx
            if cut_off and not committed:
                raise Undone("cut off before its commit")
        if cut_off and committed:
            raise Undone("cut off after its commit")

    monkeypatch.setattr(store, "transaction", cut_off_once)
    write(store)


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
