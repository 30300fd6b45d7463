"""The store's URL from an Airflow connection: `[penstock] conn_id`, and the connection type `penstock`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.errors import ConfigError, Fault, StoreUnavailable

from penstock_airflow import asking

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

CONN_TYPE = "penstock"
BACKENDS = ("postgresql", "mysql", "sqlite")
# Airflow's own connection types for the same servers: a connection that is there already need not be made again.
KINDS = {"postgres": "postgresql", "postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}


def store_url(conn_id: str) -> str:
    """The store's SQLAlchemy URL, with its password, from the Airflow connection of that id.

    Works wherever Airflow lends connections: task processes, callbacks in the dag-processor, the triggerer, the API
    server, the command line. Raises ConfigError when there is none of that id or it names no store, and
    StoreUnavailable when Airflow cannot be asked now.
    """
    try:
        connection = asking.connection(conn_id)
    except asking.not_found():
        raise ConfigError(
            [Fault(f"Airflow has no connection {conn_id!r}; make it, or set store_url", path="[penstock] conn_id")]
        ) from None
    except Exception as error:  # whatever the API server or a secrets backend raises
        kind = type(error).__name__  # its text may hold what the backend was asked for
        raise StoreUnavailable(f"Airflow does not tell its connection {conn_id!r} now ({kind})") from None
    return url_of(connection).render_as_string(hide_password=False)


def url_of(connection: Any) -> URL:
    """The store that a connection of Airflow names. Raises ConfigError, which names no secret."""
    from sqlalchemy.engine import URL  # noqa: PLC0415  # loads when the store is asked, not at every parse

    extra = connection.extra_dejson
    backend = _backend(connection, extra)
    where = _where(connection)
    if backend == "sqlite":
        path = connection.host or connection.schema
        if not path:
            raise ConfigError([Fault("the file's path is missing; write it into the field host", path=where)])
        return URL.create("sqlite", database=path)
    if not connection.host:
        raise ConfigError([Fault("the database server is missing; write it into the field host", path=where)])
    if not connection.schema:
        raise ConfigError([Fault("the database's name is missing; write it into the field schema", path=where)])
    return URL.create(
        backend,
        username=connection.login or None,
        password=connection.password or None,
        host=connection.host,
        port=connection.port,
        database=connection.schema,
        query=_options(extra, where),
    )


def _backend(connection: Any, extra: Mapping[str, Any]) -> str:
    """The kind of database: of the connection type `penstock` the field `backend`, of Airflow's own their type."""
    where = _where(connection)
    if connection.conn_type != CONN_TYPE:
        if connection.conn_type not in KINDS:
            known = ", ".join((CONN_TYPE, *KINDS))
            raise ConfigError([Fault(f"its type is {connection.conn_type!r}; one of {known} is expected", path=where)])
        return KINDS[connection.conn_type]
    backend = extra.get("backend") or BACKENDS[0]
    if backend not in BACKENDS:
        expected = ", ".join(BACKENDS)
        raise ConfigError([Fault(f"backend {backend!r}: one of {expected} is expected", path=where)])
    return str(backend)


def _options(extra: Mapping[str, Any], where: str) -> dict[str, str]:
    """What the driver is told besides: the field `options`, `sslmode=require&connect_timeout=5`."""
    from urllib.parse import parse_qsl  # noqa: PLC0415

    try:
        return dict(parse_qsl(extra.get("options") or "", keep_blank_values=True, strict_parsing=True))
    except ValueError:
        raise ConfigError([Fault("options: NAME=VALUE, joined by &, is expected", path=where)]) from None


def _where(connection: Any) -> str:
    return f"Airflow connection {connection.conn_id!r}"
