"""Databases of the benchmark's own on the servers given, with Penstock's tables in them, dropped at the end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import penstock
from penstock import changes
from penstock.config import Concurrency
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from benchmarks import floors

DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}


class Skipped(Exception):
    """Why a case cannot be measured here."""


class Databases:
    """Where to make databases: server URLs by store name. SQLite needs none."""

    def __init__(self, servers: Mapping[str, str]) -> None:
        self._servers = servers

    @contextmanager
    def empty(self, store: str) -> Iterator[str]:
        """The URL of a database with nothing in it."""
        if store == "sqlite":
            with tempfile.TemporaryDirectory(prefix="penstock-benchmark-") as folder:
                yield f"sqlite:///{Path(folder) / 'penstock.db'}"
            return
        name = f"penstock_benchmark_{uuid.uuid4().hex[:12]}"
        server = self._server(store)
        self._execute(server, f"CREATE DATABASE {name}")
        try:
            yield server.set(database=name).render_as_string(hide_password=False)
        finally:
            self._execute(server, f"DROP DATABASE {name}" + (" WITH (FORCE)" if store == "postgresql" else ""))

    @contextmanager
    def store(self, store: str, limits: Mapping[str, int]) -> Iterator[str]:
        """The URL of a store with these pools, in a database that has the floors' table, too."""
        with self.empty(store) as url:
            command = [sys.executable, "-m", "penstock", "--store", url, "db", "upgrade"]
            upgraded = subprocess.run(command, check=False, capture_output=True, text=True)
            if upgraded.returncode:
                raise Skipped(f"penstock db upgrade: {(upgraded.stderr.strip() or 'failed').splitlines()[-1]}")
            floors.create_table(url)
            with penstock.connect(url) as engine:
                block = Concurrency.model_validate({"pools": {"limits": dict(limits)}})
                changes.apply(engine, block, expected_version=engine.configuration()[0])
            yield url

    def version(self, store: str) -> str:
        """The server's name and version."""
        if store == "sqlite":
            import sqlite3

            return f"SQLite {sqlite3.sqlite_version}"
        (row,) = self._execute(self._server(store), "SELECT version()")
        return " ".join(row[0].split()[:2]) if store == "postgresql" else f"MariaDB {row[0]}"

    def _server(self, store: str) -> URL:
        return make_url(self._servers[store]).set(drivername=DRIVERS[store])

    @staticmethod
    def _execute(server: URL, statement: str) -> list[Any]:
        try:
            engine = create_engine(server, isolation_level="AUTOCOMMIT")
        except ImportError as error:
            raise Skipped(f"no driver: {error}") from error
        try:
            with engine.connect() as connection:
                result = connection.execute(text(statement))
                return list(result) if result.returns_rows else []
        except SQLAlchemyError as error:
            raise Skipped(f"{server.render_as_string()}: {str(error).splitlines()[0]}") from error
        finally:
            engine.dispose()
