"""The migrations make the tables that the code works with, and a wrong schema is said with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import penstock
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from penstock.errors import SchemaMismatch, StoreUnavailable
from penstock.store import migrations
from penstock.store.sql import SqlStore
from penstock.store.tables import REVISION, VERSION_TABLE, metadata
from servers import fresh_database
from sqlalchemy import create_engine, text

pytestmark = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


@pytest.fixture
def store_url(store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store of its own: these tests spoil it."""
    if store_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'penstock.db'}"
        return
    server = "postgresql_url" if store_kind == "postgresql" else "mysql_url"
    with fresh_database(request.getfixturevalue(server)) as url:
        store = SqlStore(url)
        store.upgrade()
        store.close()
        yield url


def test_the_migrations_make_the_tables(store: SqlStore, store_kind: str) -> None:
    def ours(_object: Any, name: str | None, kind: str, *_: object) -> bool:
        if kind == "index" and name == "penstock_claim_run":  # Alembic does not heed that MariaDB has none
            return store_kind != "mariadb"
        return kind != "table" or (name or "").startswith("penstock_")

    with create_engine(store._given).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "include_object": ours, "target_metadata": metadata}
        )
        assert compare_metadata(context, metadata) == []
        script = ScriptDirectory.from_config(migrations.configuration(connection))
        assert script.get_current_head() == REVISION == store.schema_revision()


def test_an_upgrade_is_not_cut_off_while_the_machine_does_not_let_it_run(store: SqlStore, store_kind: str) -> None:
    """The server ended it as it ends a claim that stands still inside its transaction, for a second."""
    bound = {
        "sqlite": "SELECT 0",
        "postgresql": "SELECT setting::int / 1000 FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'",
        "mariadb": "SELECT @@SESSION.idle_transaction_timeout",
    }[store_kind]
    with store._connection() as connection:
        usual = connection.exec_driver_sql(bound).scalar_one()
        assert usual == (0 if store_kind == "sqlite" else 1)
        with store.dialect.upgrading(connection):
            assert connection.exec_driver_sql(bound).scalar_one() in (0, 3600)
    with store._connection() as connection:
        assert connection.exec_driver_sql(bound).scalar_one() == usual


def test_a_newer_schema_is_refused(store: SqlStore) -> None:
    with create_engine(store._given).begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="upgrade Penstock"):
        store.check_schema()


def test_tables_that_are_missing_on_a_server_are_not_made_in_silence(store_kind: str, store: SqlStore) -> None:
    if store_kind == "sqlite":
        assert store.dialect.upgrades_itself
        return
    with create_engine(store._given).begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    with pytest.raises(SchemaMismatch, match="penstock db upgrade"):
        store.check_schema()


def test_tables_dropped_under_a_running_store_are_said_with_the_remedy(store: SqlStore, store_kind: str) -> None:
    with create_engine(store._given).begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    expected = StoreUnavailable if store_kind == "sqlite" else SchemaMismatch  # SQLite does not tell the two apart
    with pytest.raises(expected, match="table"):
        store.snapshot()


def test_a_store_that_cannot_be_reached_says_so_without_its_password(store_kind: str) -> None:
    url = "sqlite:////proc/nowhere/x.db" if store_kind == "sqlite" else "postgresql://u:secret@127.0.0.1:1/x"
    with pytest.raises(StoreUnavailable) as error:
        penstock.connect(url)
    assert "secret" not in str(error.value)


def test_urls_that_name_no_store(store_kind: str) -> None:
    for url in ("", "nonsense", "oracle://x/y"):
        with pytest.raises(StoreUnavailable, match="store"):
            SqlStore(url)
