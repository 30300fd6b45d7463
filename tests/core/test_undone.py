"""Transactions that the server ended because this machine did not let us run are done again, others are told."""

from __future__ import annotations

import psycopg
import pymysql
import pytest
from penstock.store.mysql import MysqlDialect
from penstock.store.postgresql import PostgresqlDialect


@pytest.mark.parametrize(
    ("text", "undone"),
    [
        ("consuming input failed: server closed the connection unexpectedly", True),
        ("the connection is lost", True),
        ('connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused', False),
    ],
)
def test_a_connection_cut_off_on_postgresql(text: str, undone: bool) -> None:
    assert PostgresqlDialect().was_undone(psycopg.OperationalError(text)) is undone


@pytest.mark.parametrize(("number", "undone"), [(2006, True), (2013, True), (1213, True), (2003, False), (1045, False)])
def test_a_connection_cut_off_on_mariadb(number: int, undone: bool) -> None:
    assert MysqlDialect().was_undone(pymysql.err.OperationalError(number, "says why")) is undone
