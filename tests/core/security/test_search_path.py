"""Roles of one PostgreSQL store whose search paths differ take one and the same grant lock."""

from __future__ import annotations

import pytest
from penstock.settings import StoreTimes
from penstock.store.sql import SqlStore
from servers import fresh_database
from sqlalchemy.engine import make_url


@pytest.mark.parametrize("options", ["-csearch_path=mine,public", "-csearch_path=public,mine"])
def test_the_lock_is_that_of_the_tables(postgresql_url: str, options: str) -> None:
    """It was that of the path's first schema, which by default is one of the role's own name, where there is one."""
    with fresh_database(postgresql_url) as url:
        SqlStore(url).upgrade()
        one = SqlStore(url, times=StoreTimes(lock_seconds=60))  # its transaction outlasts a slow machine
        with one.transaction() as tx:
            tx.connection.exec_driver_sql("CREATE SCHEMA mine")
        other = SqlStore(make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False))
        with one.transaction(grant_lock=True), other.transaction() as tx:
            assert not other.dialect.try_grant_lock(tx.connection)
            with other.cursor() as cursor:
                assert other.dialect.grant_simple(cursor, shift=0) == (None, False)
        with other.transaction() as tx:
            assert other.dialect.try_grant_lock(tx.connection)
        one.close()
        other.close()
