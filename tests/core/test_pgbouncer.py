"""Behind PgBouncer in transaction mode: everything works, by polling, and nothing of a session is left to others."""

from __future__ import annotations

import getpass
import multiprocessing
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import penstock
import psycopg
import pytest
from claimers import wait_and_tell
from configuring import configure
from own_servers import free_port, let_in
from penstock.engine import Engine
from penstock.settings import Settings
from servers import missing
from sqlalchemy.engine import make_url

SECOND = 1_000_000
pytestmark = pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)


@pytest.fixture
def pooled_url(store_url: str, tmp_path: Path) -> Iterator[str]:
    """The store through a pooler that lends two connections, each for a transaction."""
    if (program := shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")) is None:
        missing("no PgBouncer: install the package `pgbouncer`")
    url, port = make_url(store_url), free_port()
    password = f" password={url.password}" if url.password else ""
    settings = tmp_path / "pgbouncer.ini"
    settings.write_text(
        f"""[databases]
* = host={url.host} port={url.port or 5432} user={url.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
logfile = {tmp_path}/pgbouncer.log
"""
    )
    command = [program, str(settings)]
    if getpass.getuser() == "root":  # it refuses to run as root
        tmp_path.chmod(0o777)
        let_in(tmp_path)
        command[1:1] = ["-u", "nobody"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pooled = url.set(host="127.0.0.1", port=port)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(host="127.0.0.1", port=port, user=url.username, dbname=url.database).close()
                break
            except psycopg.Error:
                assert server.poll() is None, (tmp_path / "pgbouncer.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield pooled.render_as_string(hide_password=False)
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def engine(pooled_url: str) -> Iterator[Engine]:
    """An engine behind the pooler."""
    with penstock.connect(pooled_url, settings=Settings(store_retry_seconds=5)) as engine:
        configure(engine, pools={"limits": {"a": 1, "b": 2}})
        yield engine


def test_it_polls(engine: Engine) -> None:
    assert engine.store.listen(engine.session_id()) is None


def test_wait_hand_over_and_release(engine: Engine) -> None:
    first = engine.acquire(engine.claim("a", "b"))
    assert not hasattr(engine.try_acquire(engine.claim("a")), "lease")
    waiting = engine.request(engine.claim("a"))
    waiting.step()
    first.release()
    waiting.acquire(wait_timeout_seconds=20).release()
    with engine.hold("b:2", on_blocked="fail"):
        pass
    assert not engine.snapshot().claims


def test_an_expired_holder_is_reaped(engine: Engine, pooled_url: str) -> None:
    gone = penstock.connect(pooled_url)
    lease = gone.acquire(gone.claim("a"))
    gone._session._stop.set()
    for _ in range(12):
        engine.store.clock_shift += 5 * SECOND  # type: ignore[attr-defined]
        engine.store.sweep()
    with engine.hold("a", wait_timeout_seconds=20) as again:
        assert again.fences["pool:a"][1] > lease.fences["pool:a"][1]
    assert not gone.store.release(lease.claim_id, lease.session_id)
    gone.close()


def test_a_ticket_is_handed_to_another_engine(engine: Engine, pooled_url: str) -> None:
    claim = engine.claim("a", run_id="r", op_id="o")
    engine.acquire(claim).hand_over(seconds=60)
    with penstock.connect(pooled_url) as other, other.acquire(claim, wait_timeout_seconds=20) as lease:
        assert lease.fences["pool:a"]


def test_two_processes_over_two_connections(engine: Engine, pooled_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(1) as pool:
        granted = manager.Event()
        lease = engine.acquire(engine.claim("a"))
        child = pool.apply_async(wait_and_tell, (pooled_url, "a", 1.0, granted))
        deadline = time.monotonic() + 60
        while not any(row.waiting for row in engine.store.limit_rows()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not granted.is_set()
        lease.release()
        assert granted.wait(30)
        child.get(30)


def test_nothing_of_a_session_is_left_to_other_clients(engine: Engine, pooled_url: str) -> None:
    """Settings, LISTEN, prepared statements, locks: on the very connections that the engine has just used."""
    with engine.hold("a"):
        waiting = engine.request(engine.claim("a"))
        waiting.step()
        waiting.withdraw()
    url = make_url(pooled_url)
    state = """
        SELECT current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'),
            current_setting('plan_cache_mode'), current_setting('enable_seqscan'), current_setting('jit') = 'off',
            (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_prepared_statements),
            (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')
    """
    found: dict[int, tuple[object, ...]] = {}
    clients = [
        psycopg.connect(host=url.host, port=url.port, user=url.username, dbname=url.database, prepare_threshold=None)
        for _ in range(2)
    ]
    for client in clients:  # both transactions are open at once: both connections are seen
        (pid,) = client.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        found[pid] = client.execute(state).fetchone() or ()
    for client in clients:
        client.close()
    assert len(found) == 2
    assert set(found.values()) == {("0", "0", "auto", "on", False, 0, 0, 0)}
