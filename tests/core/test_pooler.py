"""Behind PgBouncer, which lends a connection for one transaction: it works, by polling."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from penstock import changes
from penstock.config import PoolLimit
from penstock.connection import connect
from penstock.store.sql import SqlStore
from servers import fresh_database, missing
from situations import Gauge, in_threads, until
from sqlalchemy.engine import URL, make_url

SERVER_CONNECTIONS = 3
CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
"""


@pytest.fixture(scope="module")
def pooled_url(postgresql_url: str) -> Iterator[str]:
    """A store behind a pooler that has fewer connections than we have claims under way."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        missing("no PgBouncer: install it")
    with fresh_database(postgresql_url) as url, tempfile.TemporaryDirectory(prefix="penstock-pgbouncer-") as folder:
        store = SqlStore(url)
        store.upgrade()
        store.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            CONFIGURATION.format(server=_server(make_url(url)), port=port, connections=SERVER_CONNECTIONS)
        )
        Path(folder).chmod(0o755)
        as_user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}  # it refuses to run as root
        with subprocess.Popen([str(program), "-q", str(settings)], stderr=subprocess.PIPE, **as_user) as pooler:
            try:
                pooled = make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(False)
                until(lambda: pooler.poll() is not None or _answers(port))
                assert pooler.poll() is None, pooler.stderr and pooler.stderr.read()
                yield pooled
            finally:
                pooler.terminate()


def _server(url: URL) -> str:
    facts = {
        "host": url.host or url.query.get("host"),
        "port": url.port,
        "user": url.username,
        "password": url.password,
    }
    return " ".join(f"{name}={value}" for name, value in facts.items() if value)


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_a_waiter_is_granted_though_nobody_can_listen(pooled_url: str) -> None:
    with connect(pooled_url) as one, connect(pooled_url) as other:
        changes.set_pool(one, "a", PoolLimit(limit=1))
        assert other.store.listen(other.session_id()) is None
        lease = one.acquire(one.claim("a"))
        request = other.request(other.claim("a"))
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(request.acquire()))
        waiting.start()
        until(lambda: len(one.status()["waiters"]) == 1)
        lease.release()
        waiting.join(60)
        (granted,) = found
        assert granted.slots[0].epoch > lease.slots[0].epoch
        granted.release()


def test_more_claim_at_once_than_there_are_connections(pooled_url: str) -> None:
    engines = [connect(pooled_url) for _ in range(4)]
    changes.set_pool(engines[0], "b", PoolLimit(limit=2))
    gauge = Gauge()

    def work(number: int) -> None:
        with engines[number % len(engines)].hold("b"), gauge:
            gauge.wait_for(2)

    in_threads(24, work)
    assert (gauge.entered, gauge.most) == (24, 2)
    assert [row.held for row in engines[0].store.limit_rows() if row.key == "pool:b"] == [0]
    for engine in engines:
        engine.close()


def test_the_bounds_hold_in_each_transaction_and_are_nobody_elses(pooled_url: str) -> None:
    store = SqlStore(pooled_url)
    show = "SELECT current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')"
    with store.transaction() as tx:
        assert tuple(tx.connection.exec_driver_sql(show).one()) == ("2s", "1s")
    with store.cursor() as cursor:
        assert tuple(cursor.execute(show).fetchone()) == ("2s", "1s")
    store.close()
    with psycopg.connect(make_url(pooled_url).set(drivername="postgresql").render_as_string(False)) as other:
        assert other.execute(show).fetchone() == ("0", "0")
