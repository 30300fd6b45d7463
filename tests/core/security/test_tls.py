"""TLS to the store: verified, or refused in clear words; on every connection that a process opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import penstock
import psycopg
import pymysql
import pytest
from certificates import Certificates, certificates
from own_servers import own_mariadb, own_postgresql
from penstock import changes
from penstock.config import PoolLimit
from penstock.errors import StoreUnavailable
from penstock.store.sql import SqlStore
from situations import until
from sqlalchemy import text
from sqlalchemy.engine import make_url

PASSWORD = "s3/cr:t@%"
Url = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, a server's certificate for 127.0.0.1, a strange authority."""
    return certificates(tmp_path_factory.mktemp("certificates"))


def taken_in(made: Certificates, folder: Path, user: str | None) -> tuple[Path, Path]:
    """Certificate and key where the server may read them, and nobody else the key."""
    copies = []
    for path in (made.certificate, made.key):
        copy = Path(shutil.copy(path, folder))
        copy.chmod(0o600)
        if user is not None:
            shutil.chown(copy, user)
        copies.append(copy)
    return copies[0], copies[1]


@pytest.fixture(scope="module")
def postgresql(made: Certificates) -> Iterator[Url]:
    """URLs of a PostgreSQL that lets a role in by TLS and password alone; its administrator by trust."""

    def options(folder: Path, user: str | None) -> list[str]:
        certificate, key = taken_in(made, folder, user)
        rules = folder / "hba"
        rules.write_text("host all postgres 127.0.0.1/32 trust\nhostssl all penstock 127.0.0.1/32 scram-sha-256\n")
        rules.chmod(0o644)
        settings = {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "hba_file": rules}
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    with own_postgresql(options) as server:
        there = make_url(server.url)
        with psycopg.connect(host="127.0.0.1", port=there.port, user="postgres", autocommit=True) as admin:
            admin.execute(f"CREATE ROLE penstock LOGIN PASSWORD '{PASSWORD}'")
            admin.execute("CREATE DATABASE penstock OWNER penstock")

        def url(authority: Path, host: str = "127.0.0.1", password: str = PASSWORD) -> str:
            query = f"sslmode=verify-full&sslrootcert={authority}"
            return f"postgresql://penstock:{quote(password, safe='')}@{host}:{there.port}/penstock?{query}"

        SqlStore(url(made.authority)).upgrade()
        yield url


@pytest.fixture(scope="module")
def mariadb(made: Certificates) -> Iterator[Url]:
    """The same of a MariaDB."""

    def options(folder: Path, user: str | None) -> list[str]:
        certificate, key = taken_in(made, folder, user)
        return [f"--ssl-cert={certificate}", f"--ssl-key={key}"]

    with own_mariadb(options) as server:
        there = make_url(server.url)
        with closing(pymysql.connect(host="127.0.0.1", port=there.port, user="root")) as admin:
            cursor = admin.cursor()
            cursor.execute("CREATE DATABASE penstock")
            cursor.execute("CREATE USER penstock@'%%' IDENTIFIED BY %s REQUIRE SSL", (PASSWORD,))
            cursor.execute("GRANT ALL ON penstock.* TO penstock@'%'")

        def url(authority: Path, host: str = "127.0.0.1", password: str = PASSWORD) -> str:
            return f"mysql://penstock:{quote(password, safe='')}@{host}:{there.port}/penstock?ssl_ca={authority}"

        SqlStore(url(made.authority)).upgrade()
        yield url


def refusal(url: str) -> str:
    """In which words a store at that URL is refused."""
    with pytest.raises(StoreUnavailable) as refused:
        SqlStore(url).check_schema()
    words = str(refused.value)
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in words
    return words


def test_postgresql_beats_listens_and_claims_by_tls(postgresql: Url, made: Certificates) -> None:
    url = postgresql(made.authority)
    with penstock.connect(url) as one, penstock.connect(url) as other:
        changes.set_pool(one, "a", PoolLimit(limit=1))
        with one.hold("a"):
            waiting = other.request(other.claim("a"))
            assert not hasattr(waiting.step(), "lease")
            other.wakeups.add(waiting.claim_id, lambda: None, asked_at=0.0)
            with one.store.as_upkeep():
                one.store.sweep()
            admin = make_url(url)
            with psycopg.connect(host="127.0.0.1", port=admin.port, user="postgres", autocommit=True) as watching:
                rows = "FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename = 'penstock'"

                def listens() -> bool:
                    return bool(watching.execute(f"SELECT 1 {rows} AND query LIKE 'LISTEN%'").fetchone())

                until(listens)
                by_tls = watching.execute(f"SELECT ssl {rows}").fetchall()
        assert len(by_tls) >= 4
        assert all(ssl for (ssl,) in by_tls)


def test_mariadb_beats_and_claims_by_tls(mariadb: Url, made: Certificates) -> None:
    store = SqlStore(mariadb(made.authority))

    def cipher() -> str:
        with store.transaction() as tx:
            return str(tx.connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'")).one()[1])

    assert cipher()
    with store.as_upkeep():
        assert cipher()
    store.close()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_strange_authority_another_name_and_a_wrong_password_are_refused(
    kind: str, made: Certificates, request: pytest.FixtureRequest
) -> None:
    url: Url = request.getfixturevalue(kind)
    assert "certificate verify failed" in refusal(url(made.stranger))
    named = refusal(url(made.authority, host="localhost"))
    assert "does not match host name" in named or "Hostname mismatch" in named
    assert "penstock" in refusal(url(made.authority, password="an%other@"))
    missing = url(made.authority.with_name("nowhere.pem"))
    assert "nowhere.pem" in refusal(missing)


def test_a_server_without_tls_is_refused_before_it_hears_a_password(postgresql_url: str, made: Certificates) -> None:
    """PyMySQL before 1.2 went on in plain text where the server offered no TLS."""
    with own_mariadb() as plain:
        port = make_url(plain.url).port
        words = refusal(f"mysql://root:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/mysql?ssl_ca={made.authority}")
        assert "SSL is required but the server doesn't support it" in words
    there = make_url(postgresql_url).set(password=PASSWORD, drivername="postgresql")
    asked = there.update_query_dict({"sslmode": "verify-full", "sslrootcert": str(made.authority)})
    words = refusal(asked.render_as_string(hide_password=False))
    assert "server does not support SSL" in words or "certificate verify failed" in words


def test_postgresql_without_tls_is_refused_by_a_server_that_wants_it(postgresql: Url, made: Certificates) -> None:
    plain = postgresql(made.authority).partition("?")[0] + "?sslmode=disable"
    assert "no pg_hba.conf entry" in refusal(plain)
