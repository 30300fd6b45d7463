"""`penstock ui` as it is started: what the page about it says to type, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from pages_read import DOCS, blocks
from penstock.cli import penstock as cli
from penstock.connection import connect

WEB = DOCS / "web.md"
LINES = [line for block in blocks(WEB, "console") for line in block.splitlines()]
STARTED = [line for line in LINES if line.startswith("penstock ui")]


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The URL of a store that is there."""
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    connect(url).close()
    return url


@contextmanager
def started(line: str, store: str, **environment: str) -> Iterator[str]:
    """Runs a line of the page in a shell, on a port of its own; its address."""
    penstock = f"{sys.executable} -m penstock"
    command = line.replace("penstock ui", f"exec {penstock} ui --port 0")
    given = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_UI")}
    with subprocess.Popen(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        text=True,
        env={**given, "PENSTOCK_STORE_URL": store, **environment},
    ) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        try:
            assert said.startswith("http://127.0.0.1:"), said
            yield said.split()[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def test_the_first_lines_of_the_page_serve_it(store: str) -> None:
    assert LINES[0] == "export PENSTOCK_STORE_URL=sqlite:////srv/penstock.db"
    assert len(STARTED) == 3
    with started(STARTED[0], store) as address:
        assert "There is no limit yet" in httpx.get(address).text
        assert httpx.post(f"{address}change", data={"key": "pool:a"}).status_code == 403


def test_the_tokens_of_the_page_let_in_and_its_api_lines_do_what_they_say(store: str) -> None:
    (export,) = (line for line in LINES if line.startswith("export PENSTOCK_UI_TOKEN"))
    token = subprocess.run(
        ["bash", "-c", f"{export}; echo $PENSTOCK_UI_TOKEN"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert re.fullmatch(r"ann:[0-9a-f]{32}", token)
    curls = [line for line in LINES if line.startswith("curl")]
    assert len(curls) == 3
    with started(STARTED[1], store, PENSTOCK_UI_TOKEN=token) as address:
        for line in curls:
            command = line.replace("http://127.0.0.1:8765/", address).replace("curl ", "curl -sS ")
            environment = {**os.environ, "TOKEN": token.removeprefix("ann:"), "NO_PROXY": "127.0.0.1"}
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=environment)
            assert json.loads(done.stdout).keys() <= {
                "count",
                "offset",
                "held",
                "waiting",
                "limits",
                "claims",
                "done",
                "lines",
            }
        assert httpx.get(f"{address}api/limit?key=pool:database").json()["capacity"] == 4


def test_the_proxy_of_the_page_names_who_acts(store: str) -> None:
    with started(STARTED[2], store) as address:
        assert address.endswith("/limits/")
        bare = address.removesuffix("limits/")  # the proxy takes the prefix away
        assert httpx.get(bare).status_code == 401
        for host in ("limits.example.com", "127.0.0.1"):
            page = httpx.get(f"{bare}change", headers={"X-Forwarded-User": "ann", "Host": host})
            assert '<form method="post" action="/limits/change"' in page.text
        page = httpx.get(f"{bare}change", headers={"X-Forwarded-User": "eve"})
        assert 'action="/limits/change"' not in page.text


def test_the_python_of_the_page_mounts_it(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STORE_URL", store)
    (block,) = blocks(WEB, "python")
    names: dict[str, object] = {}
    exec(compile(block, WEB.name, "exec"), names)
    from page_served import served

    with served(names["app"]) as address:
        page = httpx.get(f"{address}/limits/").text
        assert 'href="/limits/static/style.css"' in page
        assert httpx.get(f"{address}/limits/static/style.css").status_code == 200
        assert httpx.get(f"{address}/limits/limit?key=none").status_code == 404
        assert httpx.get(f"{address}/limits/api/none").json() == {"detail": "there is no such page"}
    names["engine"].close()  # type: ignore[attr-defined]


def test_it_starts_while_the_store_is_away_and_says_so(tmp_path: Path) -> None:
    with started("penstock ui", f"sqlite:///{tmp_path / 'none.db'}") as address:
        answer = httpx.get(address)
        assert answer.status_code == 503
        assert "penstock db upgrade" in answer.text
        assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (["--host", "0.0.0.0"], None, "shows the page to others"),
        (["--host", "example.com"], None, "shows the page to others"),
        ([], "short", "at least 16 characters"),
        ([], "ann:0123456789abcdef\nann:0123456789abcdee", "each name once"),
        ([], "0123456789abcdef\n0123456789abcdee", "each name once"),
        (["--proxy", "10.0.0.1"], None, "--trust-proxy-header"),
        (["--actor", "ann"], None, "--trust-proxy-header"),
    ],
)
def test_what_would_not_be_safe_is_refused(
    arguments: list[str], token: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("PENSTOCK_UI_TOKEN", token)
    done = CliRunner().invoke(cli, ["ui", "--port", "0", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert token is None or token not in done.output


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "fastapi" else find(name, *rest)
    )
    done = CliRunner().invoke(cli, ["ui"], standalone_mode=False)
    assert done.return_value == 1
    assert "fastapi missing; pip install 'penstock[web]'" in done.output


def test_importing_penstock_loads_none_of_it() -> None:
    code = "import sys, penstock; assert not {'fastapi', 'starlette', 'uvicorn', 'jinja2'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_wheel_has_what_the_page_is_made_of(tmp_path: Path) -> None:
    import zipfile

    root = DOCS.parents[1]
    build = "import hatchling.build; print(hatchling.build.build_wheel(__import__('sys').argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    shipped = set(zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).namelist())
    web = root / "core" / "penstock" / "web"
    files = {f"penstock/web/{file.relative_to(web)}" for file in web.rglob("*") if file.suffix not in ("", ".pyc")}
    assert len(files) > 20
    assert files <= shipped
