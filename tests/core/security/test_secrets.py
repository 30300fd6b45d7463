"""The password in the store's URL shows nowhere: not in logs of any level, errors, tracebacks, reprs, or processes."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from penstock.cli import main
from penstock.connection import connect
from penstock.errors import PenstockError
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from sqlalchemy.engine import make_url

SECRET = "s3/cr:t@%+ü"
QUOTED = quote(SECRET, safe="")
URLS = {
    "away": f"postgresql://me:{QUOTED}@127.0.0.1:1/limits",
    "away, MariaDB": f"mysql://me:{QUOTED}@127.0.0.1:1/limits",
    "in the query": f"postgresql://me@127.0.0.1:1/limits?password={QUOTED}",
    "in the query, MariaDB": f"mysql://me@127.0.0.1:1/limits?password={QUOTED}",
    "of a key": f"postgresql://me@127.0.0.1:1/limits?sslpassword={QUOTED}",
    "a slip": f"postgresql://me@127.0.0.1:1/limits?pasword={QUOTED}",
    "a slip, MariaDB": f"mysql://me@127.0.0.1:1/limits?pasword={QUOTED}",
    "a bad option": f"mysql://me:{QUOTED}@127.0.0.1:1/limits?no_such_option={QUOTED}",
    "not encoded": f"postgresql://me:{SECRET}@127.0.0.1:1/limits",
    "two ports": f"postgresql://me:a@b:{SECRET}@h/limits",
    "no such driver": f"oracle://me:{QUOTED}@127.0.0.1:1/limits",
    "no such file": f"postgresql://me:{QUOTED}@127.0.0.1:1/limits?sslmode=verify-full&sslrootcert=/nowhere",
}
SERVERS = {"wrong password": "mysql_url", "no TLS there": "postgresql_url", "no TLS there, MariaDB": "mysql_url"}


@pytest.fixture(params=[*URLS, *SERVERS])
def url(request: pytest.FixtureRequest) -> str:
    """A URL with a password, of a store that cannot be opened."""
    case: str = request.param
    if case in URLS:
        return URLS[case]
    there = make_url(request.getfixturevalue(SERVERS[case])).set(password=SECRET)
    if case == "no TLS there":
        there = there.update_query_dict({"sslmode": "verify-full", "sslrootcert": "/etc/hostname"})
    elif case == "no TLS there, MariaDB":
        there = there.update_query_dict({"ssl_verify_identity": "true"})
    return there.render_as_string(hide_password=False)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that anybody logs, with tracebacks."""
    said, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(said), root.level
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield said
    root.removeHandler(handler)
    root.setLevel(level)


def shows(*texts: str) -> list[str]:
    """What of the password stands in them, as it is or encoded. Of the part before its `@` a bad URL makes a port."""
    forms = (SECRET, QUOTED, quote(SECRET), SECRET.partition("@")[0], QUOTED.partition("%40")[0], repr(SECRET)[1:-1])
    return [form for form in forms for text in texts if form in text]


def test_an_engine_keeps_it_to_itself(url: str, logged: io.StringIO) -> None:
    """`?password=` stood in every error, and in the log of each beat that failed."""
    said: list[str] = []
    for error_is in ("wait", "fail", "run"):
        settings = Settings(store_retry_seconds=0, on_store_error=error_is)  # type: ignore[arg-type]
        for lazy in (True, False):
            engine: Any = None
            try:
                engine = connect(url, lazy=lazy, settings=settings)
                engine.acquire(engine.claim("a"), wait_timeout_seconds=0)
            except PenstockError as error:
                said += ["".join(traceback.format_exception(error)), repr(error)]
            if engine is not None:
                said += [repr(engine), repr(engine.store), str(engine.store.url)]
                try:
                    engine.store.listen(None)
                except PenstockError as error:
                    said += ["".join(traceback.format_exception(error)), repr(error)]
    assert said
    assert shows(*said, logged.getvalue()) == []


@pytest.mark.parametrize("given", ["--store", "PENSTOCK_STORE_URL"])
def test_no_command_shows_it(
    given: str,
    url: str,
    logged: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "penstock.yaml").write_text("concurrency: {pools: {default_limit: 1}}")
    monkeypatch.setenv("PENSTOCK_STORE_URL", url if given != "--store" else "sqlite://")
    monkeypatch.setenv("PENSTOCK_ON_STORE_ERROR", "fail")  # a `run` would wait for its store
    before = ["--store", url] if given == "--store" else []
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for words in (
        ["status"],
        ["doctor"],
        ["doctor", "--json"],
        ["db", "upgrade"],
        ["db", "current"],
        ["db", "forget", "a/b"],
        ["apply", "penstock.yaml", "--yes"],
        ["janitor", "--once"],
        ["run", "--pool", "a", "--", "true"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*before, *words])
        assert ended.value.code == 69, words
    out, err = capsys.readouterr()
    assert err
    assert "Traceback" not in err
    assert shows(out, err, logged.getvalue()) == []


def test_history_status_and_explain_do_not_know_it(postgresql_url: str, migrated: Callable[[str], str]) -> None:
    """A server that trusts takes any password."""
    url = make_url(migrated("postgresql")).set(password=SECRET).render_as_string(hide_password=False)
    with connect(url, fingerprint="f") as engine, engine.hold("a", op_id="o"):
        told = [json.dumps([engine.status(), engine.explain("o")]), repr(engine.store.history()), repr(engine.store)]
        told.append(repr(engine.store.deployments()) + engine.store.url)
    assert shows(*told) == []


def test_no_process_is_given_it_as_an_argument(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/secret.db"
    SqlStore(url).upgrade()
    look = "tr '\\0' ' ' < /proc/$PPID/cmdline; tr '\\0' ' ' < /proc/$$/cmdline"
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "run", "--pool", "a", "--", "sh", "-c", look],
        env={"PENSTOCK_STORE_URL": url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "penstock run" in done.stdout
    assert "secret.db" not in done.stdout
