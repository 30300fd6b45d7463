"""The page on operations: its statements, tried on each database; its words and figures, held to the code."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import penstock
import pytest
from pages_read import OPERATIONS, ROOT, blocks, rows, sources
from penstock import changes
from penstock.config import PoolLimit
from penstock.engine import Engine
from penstock.errors import SchemaMismatch
from penstock.store import asking, tables
from penstock.store.sql import SqlStore
from servers import fresh_database
from situations import until
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

MICRO = 1_000_000


def test_the_metrics_and_events_are_those_of_the_plugins() -> None:
    page = OPERATIONS.read_text()
    instruments = (ROOT / "plugins/penstock_plugins/instruments.py").read_text()
    there = set(re.findall(r'"(penstock\.(?:claim|limit)\.[a-z]+(?:\.duration)?)"', instruments))
    there -= {"penstock.claim.kind", "penstock.claim.id", "penstock.claim.attempt", "penstock.claim.held"}
    there -= {"penstock.claim.waiting"}  # an event in somebody else's span
    assert set(re.findall(r"`(penstock\.(?:claim|limit)\.[a-z.]+)`", page)) == there
    events = re.findall(r'_tell\(\s*"(\w+)"', (ROOT / "plugins/penstock_plugins/logging.py").read_text())
    for event in events:
        assert f"`{event}`" in page


def test_the_words_to_watch_for_in_the_log_are_there() -> None:
    code = sources("core/penstock")
    for row in rows(OPERATIONS, "Alarms worth having:"):
        for words in re.findall(r"`([^`]{20,})`", row[2]):
            assert words in code, words


def test_wrong_schemas_are_said_in_these_words(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    missing, newer = next(block for block in blocks(OPERATIONS, "text") if "9999" in block).splitlines()
    store = SqlStore(url)
    store.upgrade()
    for version, words in (("0001", missing), ("9999", newer)):
        with create_engine(url).begin() as connection:
            connection.execute(text(f"UPDATE {tables.VERSION_TABLE} SET version_num = :version"), {"version": version})
        with pytest.raises(SchemaMismatch) as refused:
            SqlStore(url, create=False).check_schema()
        assert words in str(refused.value)


def statements(mark: str) -> list[str]:
    """The statements of the one SQL block in which these words stand."""
    (block,) = (block for block in blocks(OPERATIONS, "sql") if mark in block)
    lines = "\n".join(line for line in block.splitlines() if not line.strip().startswith("--"))
    return [statement for part in lines.split(";") if (statement := part.strip())]


def execute(url: str, sql_statements: list[str]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in sql_statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_after_a_restore_no_old_lease_lives_and_no_epoch_comes_back(
    store_kind: str, store_url: str, store: SqlStore, engine: Engine, configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    lease = engine.acquire(engine.claim("a"))
    last = max(slot.epoch for slot in lease.slots)
    execute(store_url, statements("-- PostgreSQL" if store_kind == "postgresql" else "-- MariaDB, MySQL, SQLite"))
    assert lease.session_id is not None
    assert not store.beat(lease.session_id, lambda: {lease.claim_id})
    store.sweep()
    with penstock.connect(store_url) as other, other.hold("a") as next_lease:
        assert min(slot.epoch for slot in next_lease.slots) >= last + 10**9
    assert {row.detail for row in store.history()} >= ({"restored"} if store_kind != "postgresql" else set())


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_history_is_dropped_by_hand(
    store_url: str, store: SqlStore, engine: Engine, configure: Callable[..., None]
) -> None:
    store.clock_shift = -40 * 365 * 86_400 * MICRO
    configure(pools={"limits": {"a": 1}})
    store.clock_shift = 0
    with engine.hold("a") as lease:
        execute(store_url, statements("DELETE FROM penstock_history WHERE"))
        assert [row.event for row in store.history()] == ["granted"]
    with engine.hold("a") as later:
        assert later.slots[0].epoch > lease.slots[0].epoch


@pytest.fixture
def own_database(postgresql_url: str) -> Iterator[str]:
    with fresh_database(postgresql_url) as url:
        store = SqlStore(url)
        store.upgrade()
        store.close()
        yield url


def test_a_schema_of_its_own(own_database: str) -> None:
    execute(own_database, ["DROP TABLE penstock_schema_version", "CREATE SCHEMA penstock"])
    (query,) = re.findall(r"`\?(options=\S+)`", OPERATIONS.read_text())
    url = f"{own_database}?{query}"
    store = SqlStore(url)
    assert store.schema_revision() is None, "the tables of the other schema are not seen"
    store.upgrade()
    assert store.schema_revision() == tables.REVISION
    store.close()
    with penstock.connect(url) as engine, engine.hold("a"):
        assert [row.held for row in engine.store.limit_rows()] == [1]
    apart = SqlStore(own_database)
    with apart.transaction(read_only=True) as tx:
        assert tx.connection.exec_driver_sql("SELECT count(*) FROM penstock_claim").scalar() == 0
    apart.close()


def test_who_holds_the_grant_lock_is_found(own_database: str) -> None:
    store = SqlStore(own_database)
    engine = create_engine(own_database, isolation_level="AUTOCOMMIT")  # the server's statistics stand still in one
    (query,) = statements("l.classid")
    with engine.connect() as connection:
        assert connection.exec_driver_sql(query).all() == []
        with store.transaction(grant_lock=True):
            (holder,) = connection.exec_driver_sql(query).all()
            assert holder.state == "idle in transaction"
    engine.dispose()
    store.close()


def test_a_process_has_no_more_connections_than_the_page_says(own_database: str) -> None:
    name = f"penstock-{uuid.uuid4().hex[:8]}"
    url = make_url(own_database).update_query_dict({"application_name": name}).render_as_string(False)
    admin = create_engine(own_database)

    def opened() -> int:
        with admin.connect() as connection:
            counted = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
            return int(connection.execute(counted, {"name": name}).scalar_one())

    with penstock.connect(url) as engine:
        changes.set_pool(engine, "a", PoolLimit(limit=1))
        with engine.hold("a"):
            until(lambda: opened() == 2)  # one claims, the other beats
            waiting = [threading.Thread(target=_hold, args=(engine, "a"), daemon=True) for _ in range(20)]
            for thread in waiting:
                thread.start()
            until(lambda: len(engine.status()["waiters"]) == len(waiting))
            assert 3 <= opened() <= asking.CONNECTIONS + 2
        for thread in waiting:
            thread.join(60)
        assert opened() <= asking.CONNECTIONS + 2
    until(lambda: opened() == 0)
    admin.dispose()


def _hold(engine: Engine, pool: str) -> None:
    with engine.hold(pool):
        pass
