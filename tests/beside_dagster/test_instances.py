"""The limits of pools, from databases that Dagster itself made."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from penstock.cli import penstock as cli
from penstock.config_file import read
from penstock.errors import ConfigError
from penstock_plugins.dagster import pool_limits
from servers import fresh_database
from sqlalchemy.engine import make_url

DEFAULT = "concurrency: {pools: {default_limit: 3}}\n"


@contextmanager
def dagster(home: Path, settings: str = DEFAULT) -> Iterator[DagsterInstance]:
    """A Dagster at home there, with limits that were set, one that was deleted, and a pool on the default."""
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(settings)
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("database", 2)
        storage.set_concurrency_slots("closed", 0)
        storage.set_concurrency_slots("gone", 4)
        storage.delete_concurrency_limit("gone")
        storage.set_concurrency_slots("two words", 4)
        storage.initialize_concurrency_limit_to_default("seen")
        yield instance


EXPECTED = [("closed", 0, False), ("database", 2, False), ("seen", 3, True), ("two words", 4, False)]


def limits(url: str) -> list[tuple[str, int, bool]]:
    return [(row.name, row.limit, row.by_default) for row in pool_limits.read(url)]


def migrate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["migrate", "dagster", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize("open_still", [True, False], ids=["while Dagster runs", "when it is down"])
def test_sqlite(tmp_path: Path, open_still: bool) -> None:
    home = tmp_path / "home"
    with dagster(home):
        if open_still:
            assert limits(str(home)) == EXPECTED
    assert limits(str(home)) == EXPECTED
    assert limits(f"sqlite:///{home}/history/runs/index.db") == EXPECTED
    assert limits(str(home / "history" / "runs" / "index.db")) == EXPECTED


def test_nothing_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with dagster(home):
        pass
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    limits(str(home))
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_home_brings_its_pools_along(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with dagster(home):
        pass
    done = migrate(home, "-o", tmp_path / "penstock.yaml")
    assert done.return_value == 0, done.output
    pools = read((tmp_path / "penstock.yaml").read_text()).concurrency.pools
    assert {name: pool.limit for name, pool in pools.limits.items()} == {"closed": 0, "database": 2}
    assert pools.default_limit == 3
    assert "no counterpart: pool 'two words' of limit 4: " in done.stderr
    assert "Pools on the default limit (3), which need no line of their own: seen." in done.stderr


def test_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    with fresh_database(postgresql_url) as url:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        settings = DEFAULT + f"storage: {{postgres: {{postgres_url: {json.dumps(plain)}}}}}\n"
        with dagster(tmp_path / "home", settings):
            assert limits(plain) == EXPECTED
        done = migrate(tmp_path / "home")
        assert "database alone (PostgreSQL): name it by --instance-url" in done.stderr
        done = migrate(tmp_path / "home", "--instance-url", plain)
        assert "database: 2" in done.stdout
        with pool_limits._connected(plain) as connection, pytest.raises(Exception, match="read-only"):
            connection.exec_driver_sql("DELETE FROM concurrency_limits")


def test_older_schemas(tmp_path: Path) -> None:
    """An older Dagster does not note which limits are defaults; one older still has slots alone."""
    home = tmp_path / "home"
    with dagster(home):
        pass
    path = home / "history" / "runs" / "index.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE concurrency_limits DROP COLUMN using_default_limit")
    assert ("seen", 3, False) in limits(str(path))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM concurrency_limits")
    assert limits(str(path)) == [("database", 2, False), ("seen", 3, False), ("two words", 4, False)]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE concurrency_limits")
    assert limits(str(path)) == [("database", 2, False), ("seen", 3, False), ("two words", 4, False)]


def test_a_database_that_is_none_of_dagsters(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with dagster(home):
        pass
    for path in (home / "history" / "runs.db", home / "schedules" / "schedules.db"):
        assert path.exists()
        with pytest.raises(ConfigError, match="no table concurrency_slots"):
            pool_limits.read(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "words.db").write_text("not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be read: file is not a database"):
        pool_limits.read(str(tmp_path / "words.db"))
    for missing in (str(tmp_path / "none.db"), f"sqlite:///{tmp_path}/none.db", str(tmp_path), "sqlite://"):
        with pytest.raises(ConfigError, match="no SQLite file"):
            pool_limits.read(missing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.db"]
    locked = tmp_path / "locked.db"
    locked.write_bytes(b"")
    locked.chmod(stat.S_IWUSR)
    with pytest.raises(ConfigError):
        pool_limits.read(str(locked))
