"""T16: no connection left, the disk full, the database read-only. Bars: the error says so; afterwards all goes on.

The disk is full by SQLite's `max_page_count`; a server whose disk is full stops, or turns read-only by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import penstock
import psycopg
import pymysql
import pytest
from configuring import configure
from own_servers import OwnServer
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings
from situations import until
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import Pool

from faults.record import Record

TTL_SECONDS, FAULT_SECONDS = 20.0, 7.0
"""The fault outlasts a beat's pause, so that a beat meets it, and ends before the lease is lost."""
CAPACITY = 3
RecordOn = Callable[[str, str], Record]


class Actors:
    """A holder, one who comes and does not wait for the store, and one who does."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._stack, self.url = stack, url
        self.holder = self._engine(Settings(session_ttl_seconds=TTL_SECONDS))
        configure(self.holder, pools={"limits": {"a": CAPACITY}})
        self.lease = self.holder.acquire(self.holder.claim("a"))
        self.impatient, self.patient = self._engine(Settings(on_store_error="fail")), self._engine(Settings())
        self.admitted = list[float]()
        self._waiting = threading.Thread(target=self._wait, daemon=True)

    def _engine(self, settings: Settings) -> Engine:
        engine = self._stack.enter_context(penstock.connect(self.url, settings=settings))
        engine.configuration()
        return engine

    def reconnect(self) -> None:
        """Everybody's next call opens a connection anew."""
        for engine in (self.holder, self.impatient, self.patient):
            engine.store.close()

    def meet(self) -> str:
        """What is said to the one who does not wait; the other one begins to."""
        with pytest.raises(StoreUnavailable) as error:
            self._claim_often()
        self._waiting.start()
        return str(error.value)

    def _claim_often(self) -> None:
        for _ in range(2000):  # a full disk is full only when the last free page is written
            self.impatient.acquire(self.impatient.claim("a")).release()

    def _wait(self) -> None:
        with self.patient.hold(f"a:{CAPACITY - 1}"):
            self.admitted.append(time.monotonic())

    def recovered(self, over_at: float) -> float:
        """Seconds until the one who waited was in; the holder beats again, and still holds."""
        expires_at = self._expires_at()
        until(lambda: self._expires_at() > expires_at, 60)
        self._waiting.join(60)
        assert self.admitted, "it waits on though all is well"
        assert not self.lease.lost
        self.lease.release()
        decision = self.impatient.try_acquire(self.impatient.claim(f"a:{CAPACITY}"))
        assert isinstance(decision, Granted), "a slot is gone"
        decision.lease.release()
        return self.admitted[0] - over_at

    def _expires_at(self) -> int:
        sessions = self.impatient.snapshot().sessions
        return max(row.expires_at for row in sessions if row.session.session_id == self.lease.session_id)


def met(record: Record, url: str, fault: Callable[[Actors], Any], *, named: str, words: str) -> None:
    """Let the actors meet the fault; note what was said and how long all took to go on."""
    with ExitStack() as stack:
        actors = Actors(url, stack)
        with fault(actors):
            began, said = time.monotonic(), actors.meet()
            time.sleep(max(0.0, began + FAULT_SECONDS - time.monotonic()))
            assert not actors.admitted, "somebody was admitted in the middle of the fault"
        seconds = actors.recovered(time.monotonic())
    clear = 100 * (words in said)
    record(done=f"{named}: “{words}”", what="errors that say so", figure=clear, bar=100, unit="%", most=False)
    done = f"{named} for {FAULT_SECONDS:g} s; the lease held before stays"
    record(done=done, what="one who waited is in after", figure=seconds, bar=5, unit="s")
    assert clear, said


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_no_connection_is_left(store_kind: str, own_server: OwnServer, own_url: str, record_on: RecordOn) -> None:
    @contextmanager
    def exhausted(actors: Actors) -> Iterator[None]:
        for engine in (actors.impatient, actors.patient):
            engine.store.close()
        taken: list[Any] = []
        try:
            while True:
                taken.append(_connect(own_server.url))
        except (psycopg.OperationalError, pymysql.err.OperationalError):
            yield
        finally:
            for connection in taken:
                connection.close()

    words = "too many clients" if store_kind == "postgresql" else "Too many connections"
    met(record_on(store_kind, own_url), own_url, exhausted, named="every connection taken", words=words)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("named", "pragma", "lifted", "words"),
    [
        ("disk full", "max_page_count = 1", "max_page_count = 1073741823", "database or disk is full"),
        ("read-only", "query_only = on", "query_only = off", "attempt to write a readonly database"),
    ],
)
def test_the_file_cannot_be_written(
    store_url: str, record: Record, named: str, pragma: str, lifted: str, words: str
) -> None:
    in_force = [pragma]  # of one page: the least that SQLite then allows is what there is

    def on_connect(raw: Any, _record: object) -> None:
        raw.execute(f"PRAGMA {in_force[0]}")

    @contextmanager
    def unwritable(actors: Actors) -> Iterator[None]:
        event.listen(Pool, "connect", on_connect)
        actors.reconnect()
        try:
            yield
        finally:
            in_force[0] = lifted
            event.remove(Pool, "connect", on_connect)
            actors.reconnect()

    met(record, store_url, unwritable, named=named, words=words)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
def test_the_database_turns_read_only(
    store_kind: str, own_server: OwnServer, own_url: str, record_on: RecordOn
) -> None:
    """As after a failover or when a provider finds the disk full: the connections of before are ended."""
    database = make_url(own_url).database
    statements = {
        "postgresql": (
            f"ALTER DATABASE {database} SET default_transaction_read_only = on",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
            f"ALTER DATABASE {database} RESET default_transaction_read_only",
        ),
        "mariadb": ("SET GLOBAL read_only = 1", "SELECT 1", "SET GLOBAL read_only = 0"),
    }
    on, end_others, off = statements[store_kind]
    url = own_url
    if store_kind == "mariadb":  # root may write all the same
        _execute(own_server.url, "CREATE USER IF NOT EXISTS penstock", f"GRANT ALL ON {database}.* TO penstock")
        url = make_url(own_url).set(username="penstock").render_as_string(hide_password=False)

    @contextmanager
    def read_only(_: Actors) -> Iterator[None]:
        _execute(own_server.url, on, end_others)
        try:
            yield
        finally:
            _execute(own_server.url, off)

    words = "read-only transaction" if store_kind == "postgresql" else "read-only"
    met(record_on(store_kind, own_url), url, read_only, named="read-only", words=words)


def _execute(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def _connect(url: str) -> Any:
    given = make_url(url)
    host, port, user = given.host or "", given.port or 0, given.username
    if given.get_backend_name() == "postgresql":
        return psycopg.connect(host=host, port=port, user=user, dbname="postgres")
    return pymysql.connect(host=host, port=port, user=user)
