"""PostgreSQL: a claim is admitted by one statement; row locks with SKIP LOCKED, an advisory lock for granting."""

from __future__ import annotations

import os
import selectors
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.sql import quote
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    cast,
    create_engine,
    event,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from penstock.decision import HeldSlot
from penstock.errors import StoreUnavailable
from penstock.store.asking import CONNECTIONS, LOOK, POOL, Answer, Ask, held_slots, joins
from penstock.store.contract import ClaimState
from penstock.store.dialects import shown_url, without_secrets
from penstock.store.digests import digest
from penstock.store.postgresql_statements import (
    ACKNOWLEDGE,
    CHANNEL,
    GRANT_AND_LOOK,
    GRANT_LOCK,
    GRANT_SIMPLE,
    NOTIFY,
    PREPARED,
    RELEASE,
    RELEASE_AND_LOOK,
    STORE,
    SYNTAX,
    TRY_LOCK,
    acquire_statement,
)
from penstock.store.tables import VERSION_TABLE

# How long a server that says nothing is waited for, in seconds and ms; what the URL says of these counts instead.
PATIENCE = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 20_000}
ENCODING = {"client_encoding": "utf8"}  # whatever the URL or PGCLIENTENCODING says: names are any text
# A stopped process must not hold up the others. And for few, small statements again and again: to plan one costs as
# much as to execute it, to compile a plan a hundred times as much, and a plan made with empty tables must serve later.
BOUNDS = "SELECT " + ", ".join(
    f"set_config('{name}', {value}, %(local)s)"
    for name, value in (
        ("lock_timeout", "%(bound)s"),
        ("idle_in_transaction_session_timeout", "%(idle)s"),
        ("plan_cache_mode", "'force_generic_plan'"),
        ("jit", "'off'"),
        ("enable_seqscan", "'off'"),
        ("enable_hashjoin", "'off'"),
        ("enable_mergejoin", "'off'"),
        ("enable_bitmapscan", "'off'"),  # it would read what an index keeps of dead rows again and again
    )
)
UPGRADE_LOCK_MS = 500
_NO_LOCK, _DENIED = "55P03", "42501"
_OWNER = "only the role that owns the tables may do that, as `penstock db upgrade` does"
# Every right that a client has need of and this role lacks; the server's own words do not say which one it missed.
_MISSING_RIGHTS = f"""
SELECT format('GRANT %s ON %s%s TO %I', rights, what, string_agg(name, ', ' ORDER BY name), current_user) FROM (
    SELECT c.oid::regclass::text AS name, r.what, string_agg(r.name, ', ' ORDER BY r.place) AS rights
    FROM pg_class c JOIN (VALUES
        ('r', 1, 'SELECT', ''), ('r', 2, 'INSERT', ''), ('r', 3, 'UPDATE', ''), ('r', 4, 'DELETE', ''),
        ('S', 5, 'USAGE', 'SEQUENCE ')) r (kind, place, name, what) ON c.relkind::text = r.kind
    WHERE c.relname LIKE 'penstock\\_%' AND pg_table_is_visible(c.oid)
        AND NOT (c.relname = '{VERSION_TABLE}' AND r.name <> 'SELECT')
        AND NOT CASE r.kind
            WHEN 'r' THEN has_table_privilege(c.oid, r.name) ELSE has_sequence_privilege(c.oid, r.name) END
    GROUP BY c.oid, r.what) missing
GROUP BY rights, what
UNION ALL
SELECT format('GRANT CREATE ON SCHEMA %I TO %I', current_schema(), current_user)
WHERE to_regclass('{VERSION_TABLE}') IS NULL AND NOT has_schema_privilege(current_schema(), 'CREATE')
ORDER BY 1
"""
_ELSEWHERE = """
SELECT quote_ident(n.nspname), quote_ident(current_user), has_schema_privilege(n.oid, 'USAGE')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = %s AND c.relkind = 'r' LIMIT 1
"""
_UNDONE = (
    "40P01",  # deadlock
    "23503",  # a foreign key to a limit that was collected
    "25P03",  # the transaction was idle for too long: a client that the machine did not let run
    "57P01",  # the server goes down, or an administrator ended the connection
    "57P02",  # the server goes down at once, or another connection of it crashed
)
_CUT_OFF = ("server closed the connection", "the connection is lost")  # the same, where the reason got lost on the way


class PostgresqlDialect:
    """See `penstock.store.dialects.Dialect`."""

    upgrades_itself = False
    syntax = SYNTAX
    reading: Mapping[str, Any] = {"penstock_read_only": True}

    def __init__(self) -> None:
        self._pooled: WeakSet[Any] = WeakSet()
        self._prepared: WeakSet[Any] = WeakSet()
        self._bounds = {"bound": "2000", "idle": "1000"}

    def engine(self, url: URL, *, lock_seconds: float, create: bool, connections: int = CONNECTIONS) -> Engine:
        """Each statement is a transaction of its own, unless one is begun: no BEGIN and no COMMIT to send.

        Behind a pooler that lends connections for a transaction, the bounds are set in each transaction.
        """
        arguments = {name: value for name, value in PATIENCE.items() if name not in url.query}
        engine = create_engine(url, **POOL, pool_size=connections, connect_args=arguments | ENCODING)
        # Whoever waits for a lock outlasts the one who was stopped with it.
        self._bounds = {"bound": str(int(lock_seconds * 1000)), "idle": str(int(lock_seconds * 500))}

        @event.listens_for(engine, "connect")
        def _connect(raw: Any, _record: object) -> None:
            raw.autocommit = True
            if behind_pooler(raw):
                # Each transaction may have another connection of the server's: nothing that outlives it can be used.
                raw.prepare_threshold = None
                raw.autocommit = False
                self._pooled.add(raw)
            else:
                raw.execute(BOUNDS, {**self._bounds, "local": False})

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            raw: Any = connection.connection.driver_connection
            try:
                if raw in self._pooled:
                    raw.execute(BOUNDS, {**self._bounds, "local": True})
                elif not connection.get_execution_options().get("penstock_read_only"):
                    raw.execute("BEGIN")
            except psycopg.Error as error:  # SQLAlchemy does not look at what goes wrong in here
                connection.invalidate(error)
                raise OperationalError("BEGIN", None, error) from error

        @event.listens_for(engine, "rollback")
        def _rollback(connection: Connection) -> None:
            # With a rollback psycopg lets all prepared statements go, if there were any of its own. Where the server
            # cut the connection off there is none left to ask for, and to ask would hide why.
            if not connection.invalidated:
                self._prepared.discard(connection.connection.driver_connection)

        return engine

    def now(self) -> ColumnElement[int]:
        return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)

    def insert_if_absent(self, connection: Connection, table: Any, values: Any) -> bool:
        # Not by the row count: some versions of SQLAlchemy have none for an INSERT here.
        written: Any = postgresql.insert(table).on_conflict_do_nothing().returning(literal_column("1"))
        return connection.execute(written, values).first() is not None

    def try_grant_lock(self, connection: Connection) -> bool:
        return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(*self._lock_key()))))

    def grant_lock(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(*self._lock_key())))

    @staticmethod
    def _lock_key() -> tuple[ColumnElement[int] | int, ColumnElement[int]]:
        return GRANT_LOCK, literal_column(STORE, Integer)

    def is_missing(self, url: URL) -> bool:
        return False

    def forks_well(self, url: URL) -> bool:
        return True

    def upgrading(self, connection: Connection) -> AbstractContextManager[None]:
        # Between two steps the machine may let us wait for longer than a claim may: nobody else is at work meanwhile.
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        self.grant_lock(connection)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {UPGRADE_LOCK_MS}")
        return nullcontext()

    def lend(self, raw: Any) -> None:
        if raw in self._pooled:
            raw.execute(BOUNDS, {**self._bounds, "local": True})

    def take_back(self, raw: Any) -> None:
        if raw in self._pooled:
            raw.commit()

    def was_undone(self, error: BaseException) -> bool:
        cut_off = isinstance(error, psycopg.OperationalError) and any(words in str(error) for words in _CUT_OFF)
        return cut_off or getattr(error, "sqlstate", None) in _UNDONE

    def was_blocked(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) == _NO_LOCK

    def missing_right(self, error: BaseException, url: URL, engine: Engine) -> str | None:
        if getattr(error, "sqlstate", None) != _DENIED:
            return None
        arguments, options = engine.dialect.create_connect_args(url)
        try:
            # A connection of its own: the one that was refused is lost, and there may be no other.
            with psycopg.connect(*arguments, **{**PATIENCE, **options}) as connection:
                return "; ".join(row[0] for row in connection.execute(_MISSING_RIGHTS)) or _OWNER
        except psycopg.Error:
            return _OWNER

    def elsewhere(self, connection: Connection) -> str | None:
        found = connection.exec_driver_sql(_ELSEWHERE, (VERSION_TABLE,)).first()
        if found is None:
            return None
        schema, role, usable = found
        if not usable:
            return f"this role does not see their schema: GRANT USAGE ON SCHEMA {schema} TO {role}"
        return f"they are in a schema that this role does not search: ALTER ROLE {role} SET search_path = {schema}"

    def acquire(self, cursor: Any, ask: Ask) -> Answer:
        statement = acquire_statement(
            limited=ask.limited, unlimited=ask.unlimited, member=joins(ask.claim.kind, ask.owner)
        )
        parameters = ask.parameters()
        parameters |= {
            "digests": [digest(demand.key) for demand in ask.demands],
            "slots": [demand.slots for demand in ask.demands],
            "capacities": [demand.capacity for demand in ask.demands],
            "count": len(ask.demands),
            "total": sum(demand.slots for demand in ask.demands if demand.capacity is not None),
        }
        version, alive, settled, state, slots, _ = cursor.execute(statement, parameters).fetchone()
        return Answer(version, alive, settled, ClaimState(state) if state else None, held_slots(slots or ()))

    def acknowledge(self, cursor: Any, claim_id: str, session_id: str, *, shift: int) -> tuple[HeldSlot, ...] | None:
        parameters = {"id": claim_id, "session_id": session_id, "shift": shift}
        done, slots = cursor.execute(ACKNOWLEDGE, parameters).fetchone()
        return held_slots(slots or ()) if done else None

    def release(self, cursor: Any, claim_id: str, session_id: str, *, shift: int) -> tuple[bool, bool]:
        raw = cursor.connection
        if raw in self._pooled:
            parameters = {"id": claim_id, "session_id": session_id, "shift": shift}
            done = bool(cursor.execute(RELEASE, parameters).fetchone()[0])
            raw.commit()
            return done, done and self.look(cursor)
        literals = {"id": quote(claim_id, raw), "session_id": quote(session_id, raw), "shift": shift}
        _, released, _, look = self._at_once(cursor, RELEASE_AND_LOOK.format(**literals))
        return bool(released[0][0]), any(look[0])

    def look(self, cursor: Any) -> bool:
        return any(cursor.execute(LOOK).fetchone())

    def grant_simple(self, cursor: Any, *, shift: int) -> tuple[list[str] | None, bool]:
        raw = cursor.connection
        if raw in self._pooled:
            (locked,) = cursor.execute(TRY_LOCK).fetchone()
            granted = [row[0] for row in cursor.execute(GRANT_SIMPLE, {"shift": shift}).fetchall()]
            raw.commit()
            self.notify(cursor, granted)
            raw.commit()
            return (granted, self.look(cursor)) if locked == "true" else (None, False)
        _, ((locked,),), _, rows, _, _, look = self._at_once(cursor, GRANT_AND_LOOK.format(shift=shift))
        return ([row[0] for row in rows], any(look[0])) if locked == "true" else (None, False)

    def _at_once(self, cursor: Any, statements: str) -> list[list[Any]]:
        """What each of the statements returns; they reach the server together."""
        if cursor.connection not in self._prepared:
            there = {row[0] for row in cursor.execute("SELECT name FROM pg_prepared_statements", prepare=False)}
            for name in PREPARED.keys() - there:
                cursor.execute(PREPARED[name], prepare=False)
            self._prepared.add(cursor.connection)
        cursor.execute(statements, prepare=False)
        results = []
        while True:
            results.append(cursor.fetchall() if cursor.description else [])
            if not cursor.nextset():
                return results

    def notify(self, cursor: Any, claim_ids: Collection[str]) -> None:
        """In a transaction of its own, after the grant's: within it a notification costs most of the throughput."""
        cursor.execute(NOTIFY, {"ids": list(claim_ids)})

    def listen(self, url: URL, engine: Engine, session_id: str | None) -> PostgresqlListener | None:
        return PostgresqlListener.on(url, engine, session_id)


class PostgresqlListener:
    """See `penstock.store.contract.Listener`. One connection for a process, outside the pool."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reader, self._writer = os.pipe()
        self._selector = selectors.DefaultSelector()
        for fd in (connection.fileno(), self._reader):
            self._selector.register(fd, selectors.EVENT_READ)

    @classmethod
    def on(cls, url: URL, engine: Engine, session_id: str | None) -> PostgresqlListener | None:
        """A listener, or None behind a pooler, where a session's LISTEN would be another's."""
        arguments, options = engine.dialect.create_connect_args(url)
        try:
            connection = psycopg.connect(*arguments, **{**PATIENCE, **options, **ENCODING}, autocommit=True)
            try:
                if behind_pooler(connection):
                    connection.close()
                    return None
                for channel in {CHANNEL, CHANNEL + (session_id or "")}:
                    connection.execute(f'LISTEN "{channel}"')
                return cls(connection)
            except BaseException:
                connection.close()
                raise
        except (psycopg.Error, OSError) as error:  # a process may have no file descriptor left
            raise StoreUnavailable(f"{shown_url(url)}: {without_secrets(str(error), url)}") from error

    def wait(self, timeout_seconds: float) -> set[str] | None:
        heard = False
        granted: set[str] = set()
        try:
            ready = [key.fd for key, _ in self._selector.select(timeout_seconds)]
            if self._reader in ready:
                os.read(self._reader, 4096)
            if self._connection.fileno() in ready:
                for notification in self._connection.notifies(timeout=0):
                    heard = True
                    granted |= set(filter(None, notification.payload.split(",")))
        except (psycopg.Error, OSError) as error:
            raise StoreUnavailable(f"the connection that listens for grants broke: {error}") from error
        return granted if heard else None

    def interrupt(self) -> None:
        os.write(self._writer, b".")

    def close(self) -> None:
        self._selector.close()
        self._connection.close()
        os.close(self._reader)
        os.close(self._writer)


def behind_pooler(connection: Any) -> bool:
    """Whether a pooler sits between: it makes up the process id that the server would have told."""
    told: int = connection.info.backend_pid
    return bool(connection.execute("SELECT pg_backend_pid()").fetchone()[0] != told)
