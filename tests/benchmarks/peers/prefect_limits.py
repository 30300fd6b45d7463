"""Prefect's global concurrency limits: `concurrency()` against a server of our own on the same PostgreSQL."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

from benchmarks.crew import Cycle
from benchmarks.peer import serve

LIMIT = "benchmark"
START_SECONDS = 120.0


@contextmanager
def slots(*, client: int, hold_seconds: float) -> Iterator[Cycle]:
    """The synchronous context manager that flows and tasks use."""
    from prefect.concurrency.sync import concurrency

    def cycle() -> None:
        with concurrency(LIMIT, occupy=1, strict=True):
            if hold_seconds:
                time.sleep(hold_seconds)

    yield cycle


@contextmanager
def server(database_url: str) -> Iterator[None]:
    """A server as shipped; the clients find it by their environment."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-prefect-")))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "PREFECT_HOME": str(folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        }
        log = stack.enter_context((folder / "server.log").open("w"))
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(process, f"http://127.0.0.1:{port}/api/health", Path(log.name))
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not start:\n{log.read_text()[-2000:]}")


def main(url: str) -> None:
    with server(url):
        from prefect.client.orchestration import get_client

        def prepare(capacity: int) -> Mapping[str, str]:
            with get_client(sync_client=True) as client:
                client.upsert_global_concurrency_limit_by_name(LIMIT, capacity)
            return {}

        serve(f"Prefect {version('prefect')}", slots, prepare, preload=("prefect.concurrency.sync",))


if __name__ == "__main__":
    main(sys.argv[1])
