"""The store's schema from the first one to now: nothing lost, old and new together, clear words where that cannot be.

The older versions are real ones, from this repository's history.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import penstock
import pytest
import versions
from benchmarks.growth import multiply
from configuring import configure
from intervals import Interval, most_at_once, read_intervals
from penstock.decision import Granted, Waiting
from penstock.engine import Engine
from penstock.errors import SchemaMismatch, StoreUnavailable
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from penstock.store.tables import OLDEST, REVISION, VERSION_TABLE
from servers import fresh_database
from situations import granted, held, refused, until, waits
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine as SqlEngine
from sqlalchemy.engine import make_url

LONG = os.environ.get("PENSTOCK_TEST_FAULTS") == "all"
ROWS = 100_000 if LONG else 1_000
"""Waiting rows in the store that is upgraded under load."""
OLD, NEW, LIMIT, HELD_SECONDS = 6, 2, 3, 0.02
LEASES = 3
"""So many leases more has each worker after each step."""
PATIENT = Settings(ticket_seconds=3600.0)

every_kind = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


@pytest.fixture
def own_url(store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A place for a store, without any table."""
    if store_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'own.db'}"
        return
    server = "postgresql_url" if store_kind == "postgresql" else "mysql_url"
    with fresh_database(request.getfixturevalue(server)) as url:
        yield url


def made_by(version: str, url: str) -> None:
    """The tables as that version makes them."""
    done = versions.run(version, "cli", "db", "upgrade", url=url)
    assert done.returncode == 0, done.stderr


def upgraded(url: str) -> None:
    """What `penstock db upgrade` of now does."""
    store = SqlStore(url)
    store.upgrade()
    assert store.schema_revision() == REVISION
    store.close()


# -- nothing is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store_kind", "version"),
    [
        ("sqlite", versions.FIRST),
        ("postgresql", versions.FIRST),  # the first version knew no MariaDB
        ("sqlite", versions.PREVIOUS),
        ("postgresql", versions.PREVIOUS),
        ("mariadb", versions.PREVIOUS),
    ],
    indirect=["store_kind"],
)
def test_what_an_older_version_left_goes_on(own_url: str, version: str) -> None:
    made_by(version, own_url)
    done = versions.run(version, "leave_data", own_url)
    assert done.returncode == 0, done.stderr
    left: dict[str, Any] = json.loads(done.stdout)
    upgraded(own_url)
    with penstock.connect(own_url, settings=PATIENT) as engine:
        assert [[row.event, row.claim_id] for row in engine.store.history()][: len(left["history"])] == left["history"]
        assert (held(engine, "pool:a"), held(engine, "pool:b")) == (2, 1)
        refused(engine.try_acquire(engine.claim("b")))
        first, second = (left_behind(engine, left, name) for name in ("first", "second"))
        assert waits(second)
        assert waits(first)
        holder = granted(left_behind(engine, left, "holds").step())
        assert holder.claim_id == left["ids"]["holds"]
        holder.release()
        leases = [granted(first.step()), granted(second.step())]
        assert min(slot.epoch for lease in leases for slot in lease.slots) > left["epoch"]
        for lease in leases:
            lease.release()
        granted(engine.try_acquire(engine.claim({"a": 2, "b": 1}))).release()


def left_behind(engine: Engine, left: dict[str, Any], name: str) -> Any:
    pools = {"a": 2, "b": 1} if name == "holds" else "a"
    claim = engine.claim(pools, op_id=name, run_id="run", priority=5 if name == "first" else 0)
    return engine.request(claim, ticket=True)


# -- under load ----------------------------------------------------------------------------------------------------


class Workers:
    """Processes of two versions that take and give back slots of one limit, and note when they had them."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder, self._stop = url, folder, folder / "stop"
        self.processes: dict[Path, Any] = {}

    def start(self, version: str | None, count: int) -> None:
        for _ in range(count):
            notes = self._folder / f"{'new' if version is None else 'old'}-{len(self.processes)}"
            arguments = ("work", self._url, "a", str(notes), str(self._stop), str(HELD_SECONDS))
            self.processes[notes] = versions.start(version, *arguments)

    def leases(self, notes: Path) -> list[Interval]:
        return read_intervals(notes).get("held", []) if notes.exists() else []

    def all_go_on(self) -> None:
        """Each one that runs now has some leases more."""
        before = {notes: len(self.leases(notes)) for notes in self.processes}
        until(lambda: all(len(self.leases(notes)) >= had + LEASES for notes, had in before.items()), seconds=90)

    def ended(self) -> dict[Path, dict[str, list[Interval]]]:
        self._stop.touch()
        for process in self.processes.values():
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
        return {notes: read_intervals(notes) for notes in self.processes}

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


@pytest.fixture
def workers(own_url: str, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(own_url, tmp_path)
    yield workers
    workers.kill()


@every_kind
@pytest.mark.timeout(900 if LONG else 240)
def test_old_and_new_work_together_while_the_store_is_upgraded(
    store_kind: str, own_url: str, workers: Workers, tables: list[str]
) -> None:
    made_by(versions.PREVIOUS, own_url)
    with penstock.connect(own_url, settings=PATIENT) as engine:
        assert engine.store.schema_revision() == OLDEST, "whoever works with the tables leaves them as they are"
        configure(engine, pools={"limits": {"a": LIMIT, "full": 1}})
        assert isinstance(engine.request(engine.claim("full"), ticket=True).step(), Granted)
        waiter = engine.claim("full")
        assert isinstance(engine.request(waiter, ticket=True).step(), Waiting)
        multiply(own_url, waiter.claim_id, ROWS - 1)
    workers.start(versions.PREVIOUS, OLD)
    workers.start(None, NEW)
    workers.all_go_on()
    begun = time.monotonic()
    upgraded(own_url)
    ended = time.monotonic()
    workers.all_go_on()
    workers.start(None, NEW)
    workers.all_go_on()
    late = versions.run(versions.PREVIOUS, "cli", "status", url=own_url)
    assert (late.returncode, late.stdout) == (69, "")
    assert "the store is newer (schema 0003): upgrade Penstock here" in late.stderr
    notes = workers.ended()
    leases = sorted(one for lines in notes.values() for one in lines["held"])
    assert most_at_once(leases) <= LIMIT
    assert [label for lines in notes.values() for label in lines if label != "held"] == []
    starts = [one[0] for one in leases if begun - 1 < one[0] < ended + 3]
    stall = max(later - earlier for earlier, later in pairwise(starts))
    usual = [later[0] - earlier[0] for earlier, later in pairwise(leases) if later[0] < begun]
    tables.append(
        f"upgrade {OLDEST} → {REVISION} on {store_kind}, {ROWS} waiting rows, {OLD} old and {NEW} new workers, limit "
        f"{LIMIT}: upgrade {ended - begun:.2f} s, {len(leases)} leases; longest time without a grant {stall:.2f} s "
        f"(before: {max(usual):.2f} s)"
    )


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
def test_the_first_version_is_let_in_no_more_by_a_store_that_was_upgraded_under_it(
    own_url: str, workers: Workers
) -> None:
    made_by(versions.FIRST, own_url)
    workers.start(versions.FIRST, 2)
    workers.all_go_on()
    upgraded(own_url)
    done = time.monotonic()
    with penstock.connect(own_url) as engine:
        for _ in range(LEASES):
            engine.acquire(engine.claim("a"), wait_timeout_seconds=60).release()
    late = versions.run(versions.FIRST, "cli", "status", url=own_url)
    assert (late.returncode, "upgrade Penstock here" in late.stderr) == (69, True)
    begun = [one[0] for notes in workers.processes for one in workers.leases(notes)]
    assert max(begun) < done + 0.5, "one that had been let in before may note it late"


# -- refusals ------------------------------------------------------------------------------------------------------


def become(url: str, revision: str, works_from: str) -> None:
    """What a version to come does: its revision, whom it works with, and a bar for the others."""
    store = SqlStore(url)
    with store.transaction() as tx:
        tx.connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :new"), {"new": revision})
        tx.connection.execute(
            text("INSERT INTO penstock_schema (revision, works_from) VALUES (:new, :from_)"),
            {"new": revision, "from_": works_from},
        )
        with pytest.MonkeyPatch.context() as later:
            later.setattr("penstock.store.tables.REVISION", revision)
            store._bar_those_too_old(tx.connection, REVISION)
    store.close()


@every_kind
def test_a_newer_store_that_works_with_this_version_is_used_and_left_as_it_is(
    own_url: str, cli_on: Callable[..., Any]
) -> None:
    upgraded(own_url)
    with penstock.connect(own_url) as running, running.hold("a"):
        become(own_url, "9999", works_from=REVISION)
        with running.hold("b"), penstock.connect(own_url) as begun_later, begun_later.hold("c"):
            assert {row.key for row in running.store.limit_rows() if row.held} == {"pool:a", "pool:b", "pool:c"}
    done = cli_on(own_url, "db", "upgrade")
    assert (done.returncode, done.stdout.split(": ")[-1]) == (0, "schema 9999\n")


@every_kind
def test_a_newer_store_that_does_not_is_refused_at_once_by_who_runs_and_who_starts(
    own_url: str, cli_on: Callable[..., Any]
) -> None:
    upgraded(own_url)
    with penstock.connect(own_url) as running:
        lease = running.acquire(running.claim("a"))
        become(own_url, "9999", works_from="9998")
        words = r"the store is newer \(schema 9999, for versions from 9998 on; this one is of 0003\): upgrade Penstock"
        for _ in range(2):
            with pytest.raises(SchemaMismatch, match=words):
                running.acquire(running.claim("b"))
        with pytest.raises(SchemaMismatch, match=words):
            penstock.connect(own_url)
        assert held(running, "pool:b") == 0
        assert not lease.lost
        lease.release()
    for command in (("status",), ("db", "upgrade")):
        done = cli_on(own_url, *command)
        assert (done.returncode, done.stdout) == (69, "")
        assert "upgrade Penstock here" in done.stderr
        assert "Traceback" not in done.stderr


@every_kind
def test_older_tables_that_this_version_does_not_work_with_are_refused(
    own_url: str, cli_on: Callable[..., Any]
) -> None:
    upgraded(own_url)
    engine = create_engine(own_url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0001'"))
    engine.dispose()
    with pytest.raises(SchemaMismatch, match=r"older \(schema 0001, .* 0002 to 0003\): run `penstock db upgrade`"):
        SqlStore(own_url, create=False).check_schema()


def test_there_is_no_way_back_and_that_is_said(cli_on: Callable[..., Any], tmp_path: Path) -> None:
    done = cli_on(f"sqlite:///{tmp_path / 'x.db'}", "db", "upgrade", "--help")
    assert "There is no way back but a backup." in " ".join(done.stdout.split())
    assert cli_on("sqlite://", "db", "downgrade").returncode == 2


# -- broken off, two at once, rights -------------------------------------------------------------------------------


def changes_made(url: str, die_after: int | None = None) -> int:
    """Upgrade in a process of its own, which is killed (-9) after so many changes of tables; how many it made."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        made = 0

        @event.listens_for(SqlEngine, "after_cursor_execute")
        def _after(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            nonlocal made
            if statement.split(maxsplit=1)[0].upper() in ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE"):
                made += 1
                if made == die_after:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            SqlStore(url).upgrade()
            code = 0
        finally:
            os.write(writer, str(made).encode())
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as told:
        made = told.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (die_after is not None and not made)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return int(made or -1)


@every_kind
@pytest.mark.timeout(240)
def test_an_upgrade_that_was_killed_is_run_again(
    store_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def try_with(number: int, url: str) -> int:
        made = changes_made(url, number or None)
        if number:
            revision = SqlStore(url).schema_revision()
            assert revision is None or store_kind == "mariadb", "elsewhere it is done as a whole or not at all"
            if (revision or "") < OLDEST:
                with pytest.raises((SchemaMismatch, StoreUnavailable)):
                    SqlStore(url, create=False).check_schema()
            upgraded(url)
        with penstock.connect(url) as engine:
            configure(engine, pools={"limits": {"a": 1}})
            with engine.hold("a"):
                refused(engine.try_acquire(engine.claim("a")))
        return made

    def on_fresh(number: int) -> int:
        if store_kind == "sqlite":
            return try_with(number, f"sqlite:///{tmp_path / f'{number}.db'}")
        server = "postgresql_url" if store_kind == "postgresql" else "mysql_url"
        with fresh_database(request.getfixturevalue(server)) as url:
            return try_with(number, url)

    total = on_fresh(0)
    assert total > 30
    step = 1 if LONG else 7 if store_kind == "mariadb" else total // 2
    for number in range(step, total - 2, step):
        on_fresh(number)


@every_kind
def test_two_upgrades_at_once(own_url: str) -> None:
    made_by(versions.PREVIOUS, own_url)
    both = [versions.start(None, "cli", "db", "upgrade", url=own_url) for _ in range(3)]
    for process in both:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert out.endswith(f"schema {REVISION}\n")


@pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)
def test_somebody_who_writes_for_long_holds_up_the_upgrade_and_nobody_else(own_url: str) -> None:
    made_by(versions.PREVIOUS, own_url)
    store, holder = SqlStore(own_url), create_engine(own_url)
    thread = threading.Thread(target=store.upgrade)
    with penstock.connect(own_url) as engine:
        with holder.begin() as connection:
            connection.execute(text("LOCK TABLE penstock_claim IN ROW EXCLUSIVE MODE"))  # as each who writes there
            thread.start()
            begun = time.monotonic()
            while time.monotonic() < begun + 2.0:
                engine.acquire(engine.claim("a"), wait_timeout_seconds=30).release()
            assert store.schema_revision() == OLDEST
        thread.join(60)
    assert store.schema_revision() == REVISION
    holder.dispose()
    store.close()


@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_who_may_not_change_tables_is_told_who_must(store_kind: str, own_url: str, cli_on: Callable[..., Any]) -> None:
    made_by(versions.PREVIOUS, own_url)
    role = f"penstock_few_{os.getpid()}"
    url = make_url(own_url)
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        if store_kind == "postgresql":
            connection.execute(text(f"CREATE ROLE {role}"))
            connection.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"))
            connection.execute(text(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"))
            few = url.update_query_dict({"options": f"-crole={role}"})
        else:
            connection.execute(text(f"CREATE USER {role}@'%' IDENTIFIED BY 'few'"))
            connection.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {url.database}.* TO {role}@'%'"))
            few = url.set(username=role, password="few")
        try:
            few_url = few.render_as_string(hide_password=False)
            done = cli_on(few_url, "db", "upgrade")
            assert (done.returncode, done.stdout) == (69, "")
            assert "run it with the URL of a user who may, their owner" in done.stderr
            assert "Traceback" not in done.stderr
            with penstock.connect(few_url) as engine, engine.hold("a"):
                assert engine.store.schema_revision() == OLDEST
            upgraded(own_url)
        finally:
            owned = f"DROP OWNED BY {role}; DROP ROLE {role}" if store_kind == "postgresql" else f"DROP USER {role}@'%'"
            for statement in owned.split("; "):
                connection.execute(text(statement))
    admin.dispose()


@pytest.fixture
def cli_on() -> Callable[..., Any]:
    """The command line of now on a store."""
    return lambda url, *arguments: versions.run(None, "cli", *arguments, url=url)
