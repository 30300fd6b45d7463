"""Clients of one PostgreSQL store on a stage: each statement waits for its cue, so every order can be played.

What one client does is a thread's work. At each statement it stops, and so before it commits; the stage says whose
turn it is. A client that waits for another's lock is left alone until the lock is its own. A state that was there
before, with the same rows and the same story behind every client, has been gone on from before: it is not again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from penstock.store.reaping import ClockJumps
from penstock.store.sql import SqlStore
from penstock.store.tables import metadata
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Identifier, Literal
from sqlalchemy import event
from sqlalchemy.engine import make_url

SECONDS = 10.0
"""Longer than any step takes: then something is wrong with the stage."""
ALONE = ("BEGIN", "PREPARE", "SELECT set_config", "EXECUTE penstock_notify")
"""Statements that see nothing of what others do, nor they of it: nobody stops before them."""
_on_stage = threading.local()

# Every row, and limits that are fuller than they may be.
STATE = """
SELECT string_agg(line, E'\\n' ORDER BY line), (
    SELECT string_agg(concat_ws(' ', held, 'of', capacity, 'in', key), ', ') FROM (
        SELECT l.key, l.capacity, count(*) AS held FROM penstock_slot s JOIN penstock_limit l ON l.id = s.limit_id
        WHERE s.claim_id IS NOT NULL GROUP BY l.id) h WHERE held > greatest(capacity, %s))
FROM (
    SELECT concat_ws(' ', 'claim', id, state, session_id, deadline, version, rank, demands::text) AS line
        FROM penstock_claim
    UNION ALL SELECT concat_ws(' ', 'slot', limit_id, n, claim_id, epoch, usable) FROM penstock_slot
    UNION ALL SELECT concat_ws(' ', 'limit', id, key, capacity, draining) FROM penstock_limit
    UNION ALL SELECT concat_ws(' ', 'waiter', claim_id, limit_id, rank, slots) FROM penstock_waiter
    UNION ALL SELECT concat_ws(' ', 'session', id, expires_at) FROM penstock_session
    UNION ALL SELECT concat_ws(' ', 'member', claim_id, session_id) FROM penstock_member
    UNION ALL SELECT concat_ws(' ', 'meta', configuration_version) FROM penstock_meta) everything
"""


class _StagedCursor(psycopg.Cursor[Any]):
    """Of every connection of the clients."""

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        client: Client | None = getattr(_on_stage, "client", None)
        if client is not None and str(query).startswith("BEGIN;"):
            return self._one_by_one(query)
        if client is None or str(query).lstrip().startswith(ALONE):
            return super().execute(query, *arguments, **options)
        client.stop(str(query), self.connection)
        try:
            return super().execute(query, *arguments, **options)
        finally:
            client.saw(self)

    def _one_by_one(self, message: str) -> Any:
        """Statements that go to the server together: there, too, others come in between."""
        results = []
        for statement in message.split(";"):
            self.execute(statement.strip(), prepare=False)
            results += self._results
        self._set_results(results)
        return self

    def executemany(self, query: Any, *arguments: Any, **options: Any) -> None:
        if client := getattr(_on_stage, "client", None):
            client.stop(str(query), self.connection)
        super().executemany(query, *arguments, **options)


@dataclass
class Client:
    """One of those on the stage. `at`: `gate` (it stopped before a statement), `running`, or `done`."""

    number: int
    store: SqlStore
    stage: threading.Condition = field(default_factory=threading.Condition)
    at: str = "done"
    backend: int | None = None
    story: Any = None
    script: list[str] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None

    def start(self, work: Callable[[SqlStore], Any]) -> None:
        """Do the work up to its first statement."""
        self.at, self.backend, self.result, self.error = "running", None, None, None
        self.story, self.script = hashlib.sha256(), []
        self.store._jumps = ClockJumps()
        threading.Thread(target=self._play, args=(work,), daemon=True).start()

    def _play(self, work: Callable[[SqlStore], Any]) -> None:
        _on_stage.client = self
        try:
            self.result = work(self.store)
        except BaseException as error:  # whatever it is, the test shall see it
            self.error = error
        with self.stage:
            self.at = "done"
            self.stage.notify_all()

    def stop(self, text: str, connection: Any) -> None:
        """Before a statement: wait for the cue."""
        self.story.update(text.encode())
        self.script.append(" ".join(text.split())[:60])
        with self.stage:
            self.at, self.backend = "gate", connection.info.backend_pid
            self.stage.notify_all()
            if not self.stage.wait_for(lambda: self.at == "running", SECONDS):
                raise TimeoutError("no cue")

    def saw(self, cursor: Any) -> None:
        """What a statement answered is part of the client's story."""
        if (result := cursor.pgresult) is not None:
            rows = [
                [result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)
            ]
            self.story.update(repr((result.command_tuples, rows)).encode())

    def cue(self) -> None:
        """Let it go on."""
        with self.stage:
            self.at = "running"
            self.stage.notify_all()


@dataclass(frozen=True)
class Played:
    """One order in which it went: who had a turn, and what each came to."""

    order: tuple[int, ...]
    results: tuple[Any, ...]


class Stage:
    """Plays every order of what some clients do, from the same rows each time."""

    def __init__(self, url: str, clients: int) -> None:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._admin = psycopg.connect(plain, autocommit=True)
        self.clients = [Client(number, SqlStore(url)) for number in range(clients)]
        self.schedules = 0
        self._story = ""
        for client in self.clients:
            for pool in (client.store._engine, client.store._upkeep_engine):
                event.listen(pool, "connect", _put_on_stage)
                event.listen(pool, "commit", _stop_before_commit)

    def close(self) -> None:
        """Give back every connection."""
        for client in self.clients:
            client.store.close()
        self._admin.close()

    def play(
        self,
        works: Sequence[Callable[[SqlStore], Any]],
        check: Callable[[Played], None],
        *,
        excess: int = 0,
        clock_shift: int = 0,
    ) -> int:
        """Every order of these works; `check` looks at the end of each. How many there were.

        At every step no limit may be fuller than its capacity, or than the `excess` that a shrink left.
        """
        scene = self._dump()
        seen: set[tuple[Any, ...]] = set()
        ends: list[tuple[str, tuple[Any, ...]]] = []
        todo: list[tuple[int, ...]] = [()]
        played = 0
        for client in self.clients:
            client.store.clock_shift = clock_shift
        while todo:
            prefix = todo.pop()
            self._admin.execute(scene)
            order, rows = self._go_through(works, prefix, seen, todo, excess)
            played += 1
            cast = self.clients[: len(works)]
            for client in cast:
                if client.error is not None:
                    raise AssertionError(f"client {client.number} in order {order}: {self._told()}") from client.error
            end = (rows, tuple(client.result for client in cast))
            if end in ends:
                continue
            ends.append(end)
            try:
                check(Played(order, end[1]))
            except AssertionError as error:
                raise AssertionError(f"in order {order}: {error}\n{self._told()}") from error
        self.schedules += played
        return played

    def _go_through(
        self,
        works: Sequence[Callable[[SqlStore], Any]],
        prefix: tuple[int, ...],
        seen: set[tuple[Any, ...]],
        todo: list[tuple[int, ...]],
        excess: int,
    ) -> tuple[tuple[int, ...], str]:
        """Play one order: the prefix, then whoever comes first; the other ways to go on from there are left to do.

        The order, and the rows at its end.
        """
        cast = self.clients[: len(works)]
        for client, work in zip(cast, works, strict=True):
            client.start(work)
        order: tuple[int, ...] = ()
        branching = True
        while able := self._settle(cast):
            if len(order) < len(prefix):
                choice = prefix[len(order)]
                assert choice in able, f"client {choice} is not to be moved after {order}: {self._told()}"
            else:
                if branching:
                    state = self._state(cast, excess)
                    branching = state not in seen
                    seen.add(state)
                choice = able[0]
                if branching:
                    todo += [(*order, other) for other in able[1:]]
            order = (*order, choice)
            cast[choice].cue()
        return order, self._state(cast, excess)[0]

    def _settle(self, cast: Sequence[Client]) -> list[int]:
        """Wait until each has stopped, is done, or waits for a lock. Who can have the next turn; nobody: all are done.

        Where all that are left wait for locks of each other, the database ends that by itself.
        """
        waited = 0.0
        while True:
            running = []
            for client in cast:
                with client.stage:
                    if client.at == "running":
                        client.stage.wait_for(lambda one=client: one.at != "running", 0.002)  # type: ignore[misc]
                    if client.at == "running":
                        running.append(client)
            able = [client.number for client in cast if client.at == "gate"]
            if not running or (able and all(self._waits_for_a_lock(client) for client in running)):
                return able
            waited += 0.002
            assert waited < SECONDS, self._told()

    def _waits_for_a_lock(self, client: Client) -> bool:
        held_up = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
        return bool(self._admin.execute(held_up, (client.backend,)).fetchone()[0])  # type: ignore[index]

    def _state(self, cast: Sequence[Client], excess: int) -> tuple[Any, ...]:
        rows, over = self._admin.execute(STATE, (excess,)).fetchone()  # type: ignore[misc]
        assert not over, f"{over}: {self._told()}"
        return (rows, *((client.at, client.story.hexdigest()) for client in cast))

    def _told(self) -> str:
        return "\n".join(
            f"client {client.number}, {client.at}: " + "\n    ".join(client.script) for client in self.clients
        )

    def _dump(self) -> bytes:
        """What makes the rows as they are now, in one statement."""
        parts = [SQL("DELETE FROM {}").format(Identifier(table.name)) for table in reversed(metadata.sorted_tables)]
        for table in metadata.sorted_tables:
            cursor = self._admin.execute(SQL("SELECT * FROM {}").format(Identifier(table.name)))
            names = [column.name for column in cursor.description or ()]
            parts += [
                SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    Identifier(table.name),
                    SQL(", ").join(map(Identifier, names)),
                    SQL(", ").join(
                        Literal(psycopg.types.json.Json(value) if isinstance(value, (dict, list)) else value)
                        for value in row
                    ),
                )
                for row in cursor.fetchall()
            ]
        for name in ("penstock_history", "penstock_limit"):  # so that the same order comes to the same numbers
            last = SQL("(SELECT coalesce(max(id), 0) + 1 FROM {})").format(Identifier(name))
            sequence = SQL("pg_get_serial_sequence({}, 'id')").format(Literal(name))
            parts.append(SQL("SELECT setval({}, {}, false)").format(sequence, last))
        return SQL("; ").join(parts).as_bytes(self._admin)


def _put_on_stage(raw: Any, _record: object) -> None:
    raw.cursor_factory = _StagedCursor


def _stop_before_commit(connection: Any) -> None:
    raw = connection.connection.driver_connection
    client: Client | None = getattr(_on_stage, "client", None)
    if client is not None and raw.info.transaction_status != TransactionStatus.IDLE:
        client.stop("COMMIT", raw)


@contextmanager
def stage(url: str, clients: int) -> Iterator[Stage]:
    """A stage on the store at that URL."""
    opened = Stage(url, clients)
    try:
        yield opened
    finally:
        opened.close()
