"""Transactions that the server ended because this machine did not let us run are done again, others are told."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg
import pymysql
import pytest
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
