"""The page's roles: its statements are run, each role can do what the page says, and each right is missed by name."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import penstock
import pytest
from pages_read import SECURITY, blocks, rows
from penstock import changes
from penstock.config import PoolLimit
from penstock.errors import MissingRight, PenstockError, SchemaMismatch
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from servers import fresh_database
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

NAMES = ("owner", "client", "reader")
PASSWORDS = {"owner": "change me", "client": "change me, too", "reader": "and me"}


@dataclass(frozen=True, slots=True)
class Roles:
    """A store whose roles the page's statements made, by names of their own: a server's roles are everybody's."""

    admin: URL
    mark: str

    @property
    def kind(self) -> str:
        return "PostgreSQL" if self.admin.get_backend_name() == "postgresql" else "MariaDB"

    def own(self, words: str) -> str:
        """Words of the page, with the names that the roles and the database have here."""
        for name in NAMES:
            words = words.replace(f"penstock_{name}", f"penstock_{name}_{self.mark}")
        database = str(self.admin.database)
        for before in ("DATABASE ", "ON "):
            for after in (" ", ".*"):
                words = words.replace(f"{before}penstock{after}", f"{before}{database}{after}")
        return words

    def url(self, role: str) -> str:
        """The store's URL for a role."""
        given = self.admin.set(username=f"penstock_{role}_{self.mark}", password=PASSWORDS[role])
        return given.render_as_string(hide_password=False)

    def execute(self, *statements: str) -> None:
        """As the administrator."""
        engine = create_engine(self.admin, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(self.own(statement).replace("%", "%%"))


def statements(kind: str) -> list[str]:
    """Those of the page, one by one."""
    (block,) = (block for block in blocks(SECURITY, "sql") if f"-- {kind}" in block)
    text = "\n".join(line for line in block.splitlines() if not line.startswith("--"))
    return [one for part in text.split(";") if (one := part.strip())]


@pytest.fixture(params=["postgresql", "mysql"])
def roles(request: pytest.FixtureRequest) -> Iterator[Roles]:
    """The roles, with a database that has no tables yet."""
    with fresh_database(request.getfixturevalue(f"{request.param}_url")) as url:
        made = Roles(make_url(url), uuid.uuid4().hex[:8])
        made.execute(*(one for one in statements(made.kind) if not one.startswith("CREATE DATABASE")))
        try:
            yield made
        finally:
            if made.kind == "PostgreSQL":
                made.execute(*(f"DROP OWNED BY penstock_{name} CASCADE" for name in NAMES))
                made.execute(*(f"DROP ROLE penstock_{name}" for name in NAMES))
            else:
                made.execute(*(f"DROP USER penstock_{name}@'%'" for name in NAMES))


@pytest.fixture
def upgraded(roles: Roles) -> Roles:
    """The same, with the tables, and a pool."""
    SqlStore(roles.url("owner")).upgrade()
    with penstock.connect(roles.url("client")) as engine:
        changes.set_pool(engine, "a", PoolLimit(limit=2))
    return roles


def test_the_client_works_and_makes_nothing(roles: Roles) -> None:
    with pytest.raises(SchemaMismatch, match="penstock db upgrade"):
        penstock.connect(roles.url("client"))
    with pytest.raises(MissingRight, match="GRANT CREATE"):
        SqlStore(roles.url("client")).upgrade()
    SqlStore(roles.url("owner")).upgrade()
    with penstock.connect(roles.url("client")) as engine:
        changes.set_pool(engine, "a", PoolLimit(limit=1))
        with engine.hold("a", run_id="r") as lease:
            waiting = engine.request(engine.claim("a"))
            waiting.step()
            engine.store.sweep()
            engine.janitor.upkeep()
            assert lease.slots
        waiting.withdraw()
        SqlStore(roles.url("client")).check_schema()
        with pytest.raises(MissingRight), engine.store.transaction() as tx:
            tx.connection.exec_driver_sql("DROP TABLE penstock_member")


def test_the_reader_looks_and_changes_nothing(
    upgraded: Roles, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, reading: Callable[..., Any]
) -> None:
    (tmp_path / "penstock.yaml").write_text("concurrency: {pools: {limits: {a: 5}}}")
    monkeypatch.chdir(tmp_path)
    with penstock.connect(upgraded.url("client")) as engine, engine.hold("a", op_id="holder"):
        for words in (
            ["status"],
            ["explain", "holder"],
            ["limits", "list"],
            ["pools", "list"],
            ["plan", "penstock.yaml"],
            ["export", "airflow-pools"],
            ["doctor"],
        ):
            done = reading(upgraded.url("reader"), *words)
            assert done.returncode == 0, (words, done.stderr, done.stdout)
        for words in (["pools", "set", "a", "9"], ["free", "holder", "--yes"], ["run", "--pool", "a", "--", "true"]):
            done = reading(upgraded.url("reader"), *words)
            assert done.returncode == 69, (words, done.stderr)
            assert "GRANT" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`penstock` on the store of a URL."""
    from penstock.cli import main

    def run(url: str, *words: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        monkeypatch.setenv("PENSTOCK_STORE_URL", url)
        with pytest.raises(SystemExit) as ended:
            main(words)
        return subprocess.CompletedProcess(list(words), int(ended.value.code or 0), *capsys.readouterr())

    return run


def everything(url: str) -> None:
    SqlStore(url).check_schema()


def claim(url: str) -> None:
    with penstock.connect(url, settings=Settings(store_retry_seconds=600, on_store_error="run")) as engine:
        engine.acquire(engine.claim("a"))


def give_back(url: str) -> None:
    engine = penstock.connect(url)
    engine.acquire(engine.claim("a")).release()


def upgrade(url: str) -> None:
    SqlStore(url).upgrade()


FAILS: dict[str, Callable[[str], None]] = {
    "everything": everything,
    "to claim": claim,
    "to give back": give_back,
    "`penstock db upgrade`": upgrade,
}
REVOKE = {
    "CONNECT on the database": "REVOKE CONNECT ON DATABASE penstock FROM {}",
    "USAGE on the schema": "REVOKE USAGE ON SCHEMA penstock FROM {}",
    "the search path": "ALTER ROLE {} IN DATABASE penstock SET search_path = public",
    "USAGE on the sequences": "REVOKE USAGE ON ALL SEQUENCES IN SCHEMA penstock FROM {}",
    "CREATE on the schema": "ALTER SCHEMA penstock OWNER TO CURRENT_USER; GRANT USAGE ON SCHEMA penstock TO {}",
}


def revocation(row: list[str], roles: Roles) -> list[str]:
    """The statements that take away what a row of the page says."""
    kind, without, whose = row[:3]
    role = f"penstock_{whose}"
    if without in REVOKE:
        return REVOKE[without].format(role).split("; ")
    right = without.removesuffix(" on the tables")
    if kind == "PostgreSQL":
        return [f"REVOKE {right} ON ALL TABLES IN SCHEMA penstock FROM {role}"]
    return [f"REVOKE {right} ON penstock.* FROM {role}@'%'"]


ROWS = rows(SECURITY, "What a missing right breaks.")
CASES = [("postgresql" if row[0] == "PostgreSQL" else "mysql", row) for row in ROWS]


@pytest.mark.parametrize(("roles", "row"), CASES, indirect=["roles"], ids=[f"{row[0]}: {row[1]}" for row in ROWS])
def test_each_right_is_missed_by_name(roles: Roles, row: list[str]) -> None:
    """A refused statement was a driver's traceback on PostgreSQL, and was waited for as an outage on MariaDB."""
    whose, fails, says = row[2:]
    if whose == "client":
        SqlStore(roles.url("owner")).upgrade()
        with penstock.connect(roles.url("client")) as engine:
            changes.set_pool(engine, "a", PoolLimit(limit=1000))
    roles.execute(*revocation(row, roles))
    with pytest.raises(PenstockError) as refused:
        FAILS[fails](roles.url(whose))
    assert roles.own(says.strip("`")) in str(refused.value)
    if roles.kind == "MariaDB" or "privilege" not in says:
        assert f"penstock_{whose}_{roles.mark}" in str(refused.value).rpartition(":")[2]
