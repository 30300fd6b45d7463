"""MariaDB from 10.6 and MySQL from 8.0.1 on, READ COMMITTED: SKIP LOCKED, and the one row of `meta` as grant lock."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    event,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError

from penstock.decision import HeldSlot
from penstock.errors import StoreUnavailable
from penstock.store import stepwise, tables
from penstock.store.asking import CONNECTIONS, POOL, Answer, Ask, held_slots, joins, look
from penstock.store.contract import ClaimState
from penstock.store.stepwise import Picked, Settled
from penstock.store.writing import Cursor

_FOUND_ROWS, _MULTI_STATEMENTS = 2, 65536  # flags of the protocol; the first is SQLAlchemy's own
_DUPLICATE = 1062
_DEADLOCK = 1213
_NO_LOCK = 1205
_NO_PARENT = 1452  # a foreign key to a limit that was collected
_IDLE = (
    1927,
    2006,
    2013,
    4031,
)  # cut off, mostly because the machine did not let us run; each as one or the other says
_DENIED = (1044, 1142, 1143, 1227, 1370)  # to a database, table, column, what only administrators may, routine
_COMMAND_DENIED = re.compile(r"(?P<right>[A-Z, ]+) command denied to user (?P<user>\S+) for table (?P<table>\S+)")
_DATABASE_DENIED = re.compile(r"denied for user (?P<user>\S+) to database '(?P<database>[^']*)'")
UPGRADE_SECONDS = 60
_CLOCK = "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"


# MariaDB makes hops in the index of this. The recursion of the others would read the queues from their beginning there,
# for each limit anew: a smallest value above another row's is no hop to it.
QUEUED = "queued (limit_id) AS (SELECT DISTINCT limit_id FROM penstock_waiter)"
LOOK = look(QUEUED)


class _Syntax:
    quote = "`"
    now = f"({_CLOCK} + :shift)"
    share = " LOCK IN SHARE MODE"
    update = " FOR UPDATE"
    skip = " FOR UPDATE SKIP LOCKED"
    queued = QUEUED
    returns_ids = False  # MariaDB could, MySQL cannot

    def parameter(self, name: str) -> str:
        return f"%({name})s"

    def is_duplicate(self, error: Exception) -> bool:
        return error.args[:1] == (_DUPLICATE,)


SYNTAX = _Syntax()


_CLAIM = "penstock_claim FORCE INDEX (PRIMARY)"
"""By an index of sessions or states the server would lock others' claims on its way, in an order of its own."""
# What belongs together goes to the server in one message: each is a round trip, and PyMySQL's own work, otherwise.
ACKNOWLEDGE = f"{stepwise.ACKNOWLEDGE.replace('penstock_claim', _CLAIM)}; SELECT ROW_COUNT(); {stepwise.SLOTS}; COMMIT"
_THIS = "id = :id AND session_id = :session_id AND state = 'held' AND kind = 'op'"
RELEASE = f"""
INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, held)
SELECT {{now}}, 'released', id, host, deployment,
    CONCAT_WS(' ', CONCAT(host, '/', deployment), COALESCE(name, run_id), IF(name IS NULL, op_id, NULL)),
    demands, {{now}} - granted_at
FROM {_CLAIM} WHERE {_THIS} FOR UPDATE;
UPDATE {_CLAIM} SET state = 'ended', live_holder = NULL, session_id = NULL, deadline = NULL, ended_at = {{now}},
    outcome = 'released' WHERE {_THIS};
SET @penstock_done = ROW_COUNT();
UPDATE penstock_slot SET claim_id = NULL WHERE @penstock_done = 1 AND claim_id = :id AND usable;
DELETE FROM penstock_slot WHERE @penstock_done = 1 AND claim_id = :id;
COMMIT;
SELECT @penstock_done;
{LOOK};
COMMIT"""


@cache
def _grant_statement(slots: int, *, member: bool) -> str:
    marks = [
        f"UPDATE penstock_slot SET claim_id = :id, epoch = LAST_INSERT_ID() WHERE limit_id = :limit_{i} AND n = :n_{i}"
        for i in range(slots)
    ]
    parts = [stepwise.CLAIM, *([stepwise.JOIN] if member else []), stepwise.GRANTED, *marks, "COMMIT"]
    return "; ".join([*parts, "SELECT LAST_INSERT_ID()"])


def _write_and_commit(
    cursor: Cursor, ask: Ask, values: dict[str, Any], settled: Settled, picked: Picked | None
) -> Answer:
    if picked is None or len(picked) < len(settled):
        answer = stepwise.write(cursor, ask, values, settled, picked)
        cursor.raw.connection.commit()
        return answer
    taken = [(demand.key, limit_id, n) for demand, limit_id in settled for n in picked[limit_id]]
    for i, (_, limit_id, n) in enumerate(taken):
        values |= {f"limit_{i}": limit_id, f"n_{i}": n}
    statement = _grant_statement(len(taken), member=joins(ask.claim.kind, ask.owner))
    epoch = int(_at_once(cursor, statement, values)[-1][0][0])
    slots = held_slots([(key, n, epoch) for key, _, n in taken])
    return Answer(ask.version, True, len(settled), ClaimState.HELD, slots)


def _at_once(cursor: Cursor, statements: str, values: Mapping[str, Any]) -> list[list[Any]]:
    """What each statement returns. One that fails ends the message, and its error is raised."""
    raw = cursor(statements, values)
    results = [list(raw.fetchall())]
    while raw.nextset():
        results.append(list(raw.fetchall()))
    return results


class MysqlDialect:
    """See `penstock.store.dialects.Dialect`."""

    upgrades_itself = False
    syntax = SYNTAX
    reading: Mapping[str, Any] = {}

    def engine(self, url: URL, *, lock_seconds: float, create: bool, connections: int = CONNECTIONS) -> Engine:
        """A stopped process must not hold up the others: lock waits and idle transactions are bounded.

        MySQL knows no limit for idle transactions; there an idle connection ends after some seconds, so the pool makes
        new ones in time.
        """
        engine = create_engine(
            url,
            pool_recycle=25 * 60,
            **POOL,
            pool_size=connections,
            isolation_level="READ COMMITTED",
            connect_args={"client_flag": _FOUND_ROWS | _MULTI_STATEMENTS, "charset": "utf8mb4"},
        )
        seconds = max(1, round(lock_seconds))

        @event.listens_for(engine, "connect")
        def _connect(raw: Any, _record: object) -> None:
            with raw.cursor() as cursor:
                # Whatever the server's is: quotes mean the same everywhere, and what does not fit is never cut.
                cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'")
                # Of a local time the hour in which summer ends comes twice: the store's clock would jump.
                cursor.execute("SET SESSION time_zone = '+00:00'")
                cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {seconds}")
                cursor.execute("SELECT @@version")
                if "MariaDB" in cursor.fetchone()[0]:
                    cursor.execute(f"SET SESSION idle_transaction_timeout = {max(1, seconds // 2)}")
                else:
                    cursor.execute("SET SESSION wait_timeout = 1800")
            raw.commit()

        return engine

    def now(self) -> ColumnElement[int]:
        return literal_column(_CLOCK, BigInteger)

    def insert_if_absent(self, connection: Connection, table: Any, values: Any) -> bool:
        """A duplicate undoes the one statement, not the transaction. INSERT IGNORE would swallow other faults, too."""
        try:
            connection.execute(insert(table), values)
        except IntegrityError as error:
            if error.orig is not None and error.orig.args[:1] == (_DUPLICATE,):
                return False
            raise
        return True

    def try_grant_lock(self, connection: Connection) -> bool:
        return connection.execute(select(tables.meta.c.id).with_for_update(skip_locked=True)).first() is not None

    def grant_lock(self, connection: Connection) -> None:
        connection.execute(select(tables.meta.c.id).with_for_update())

    def is_missing(self, url: URL) -> bool:
        return False

    def forks_well(self, url: URL) -> bool:
        return True

    @contextmanager
    def upgrading(self, connection: Connection) -> Iterator[None]:
        if not connection.scalar(select(func.get_lock("penstock_upgrade", UPGRADE_SECONDS))):
            raise StoreUnavailable(
                "somebody else has been upgrading the store's tables for a minute; look what it does"
            )
        # Between two steps the machine may let us wait for longer than a claim may, and half an upgrade is worse.
        idle = "idle_transaction_timeout" if getattr(connection.dialect, "is_mariadb", False) else "wait_timeout"
        bound = connection.exec_driver_sql(f"SELECT @@SESSION.{idle}").scalar_one()
        # Each change of a table waits for the transactions that use it, and the next ones wait behind it.
        connection.exec_driver_sql(f"SET SESSION {idle} = {UPGRADE_SECONDS * 60}, SESSION lock_wait_timeout = 1")
        try:
            yield
            connection.exec_driver_sql("COMMIT")  # before the next one looks
            connection.exec_driver_sql(f"SET SESSION {idle} = {int(bound)}, SESSION lock_wait_timeout = DEFAULT")
            connection.execute(select(func.release_lock("penstock_upgrade")))
        except BaseException:
            connection.invalidate()  # the lock goes with it
            raise

    def lend(self, raw: Any) -> None:
        pass

    def take_back(self, raw: Any) -> None:
        pass

    def was_undone(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] in (_DEADLOCK, _NO_PARENT, *_IDLE)

    def was_blocked(self, error: BaseException) -> bool:
        return error.args[:1] == (_NO_LOCK,)

    def missing_right(self, error: BaseException, url: URL, engine: Engine) -> str | None:
        if not error.args or error.args[0] not in _DENIED:
            return None
        said = str(error.args[1])
        if (denied := _COMMAND_DENIED.search(said)) is not None:
            return f"GRANT {denied['right']} ON {denied['table']} TO {denied['user']}"
        if (denied := _DATABASE_DENIED.search(said)) is not None:
            return f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{denied['database']}`.* TO {denied['user']}"
        return "ask the server's administrator for it"

    def elsewhere(self, connection: Connection) -> str | None:
        return None

    def acquire(self, cursor: Any, ask: Ask) -> Answer:
        answer = stepwise.acquire(Cursor(cursor, SYNTAX), ask, _write_and_commit)
        if answer.state is None:
            cursor.connection.rollback()
        return answer

    def acknowledge(self, cursor: Any, claim_id: str, session_id: str, *, shift: int) -> tuple[HeldSlot, ...] | None:
        values = {"id": claim_id, "session_id": session_id, "shift": shift}
        _, ((done,),), slots, _ = _at_once(Cursor(cursor, SYNTAX), ACKNOWLEDGE, values)
        return held_slots(slots) if done else None

    def release(self, cursor: Any, claim_id: str, session_id: str, *, shift: int) -> tuple[bool, bool]:
        results = _at_once(Cursor(cursor, SYNTAX), RELEASE, {"id": claim_id, "session_id": session_id, "shift": shift})
        (done,), look = results[-3][0], results[-2][0]
        return bool(done), bool(done) and any(look)

    def grant_simple(self, cursor: Any, *, shift: int) -> tuple[list[str] | None, bool]:
        return [], True  # the pass by steps does it all

    def look(self, cursor: Any) -> bool:
        cursor.execute(LOOK)
        found = any(cursor.fetchone())
        cursor.connection.rollback()
        return found

    def notify(self, cursor: Any, claim_ids: Collection[str]) -> None:
        pass

    def listen(self, url: URL, engine: Engine, session_id: str | None) -> None:
        return None
