"""Commands that hold or go on, begun while their store is away: a server behind a proxy that cuts it off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import penstock
import pytest
from configuring import configure
from penstock.engine import Engine
from penstock.store.contract import Session
from proxy import TcpProxy
from situations import until
from sqlalchemy.engine import make_url

pytestmark = pytest.mark.parametrize("store_kind", ["postgresql", "mariadb"], indirect=True)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": 1}})
        yield engine


@pytest.fixture
def proxy(store_url: str) -> Iterator[TcpProxy]:
    url = make_url(store_url)
    assert url.host is not None
    assert url.port is not None
    with TcpProxy(url.host, url.port) as proxy:
        yield proxy


@pytest.fixture
def start(store_url: str, engine: Engine, proxy: TcpProxy) -> Iterator[Start]:
    """Start `penstock …` behind the proxy, with an `on_store_error`."""
    behind = make_url(store_url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, on_store_error: str = "wait") -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [sys.executable, "-m", "penstock", "--store", behind, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PENSTOCK_ON_STORE_ERROR": on_store_error},
            )
            stack.callback(child.communicate)
            stack.callback(child.kill)
            return child

        yield begin


def read_until(child: subprocess.Popen[str], said: str) -> None:
    assert child.stderr is not None
    lines = list[str]()
    while said not in (line := child.stderr.readline()):
        lines.append(line)
        assert line, lines


def test_a_command_waits_for_its_store(start: Start, engine: Engine, proxy: TcpProxy, tmp_path: Path) -> None:
    proxy.cut()
    began = tmp_path / "began"
    child = start("run", "--pool", "a", "--", "touch", str(began))
    read_until(child, "the store is away, nothing is admitted meanwhile; trying again")
    assert not began.exists()
    proxy.mend()
    assert child.wait(60) == 0
    assert began.exists()
    assert [row.event.value for row in engine.store.history()][-2:] == ["granted", "released"]


def test_a_signal_ends_the_wait_for_a_store(start: Start, proxy: TcpProxy, tmp_path: Path) -> None:
    proxy.cut()
    child = start("run", "--pool", "a", "--", "touch", str(tmp_path / "began"))
    read_until(child, "trying again")
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "began").exists()


def test_a_command_fails_at_once_where_it_is_to(start: Start, proxy: TcpProxy, tmp_path: Path) -> None:
    proxy.cut()
    child = start("run", "--pool", "a", "--", "touch", str(tmp_path / "began"), on_store_error="fail")
    assert child.wait(60) == 69
    assert not (tmp_path / "began").exists()


def test_a_command_goes_on_without_limits_where_it_is_to_and_says_so(start: Start, proxy: TcpProxy) -> None:
    proxy.cut()
    child = start("run", "--pool", "a", "--", "echo", "done", on_store_error="run")
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "done\n")
    assert "running WITHOUT LIMITS (on_store_error=run)" in err


def test_a_janitor_waits_for_its_store(start: Start, engine: Engine, proxy: TcpProxy) -> None:
    proxy.cut()
    child = start("janitor", "--interval", "0.1")
    read_until(child, "the store is away, trying again")
    proxy.mend()
    engine.store.open_session(Session("dead", "process", "there", 1, "there", ttl_seconds=-60.0))
    until(lambda: not engine.store.snapshot().sessions)  # nobody but the janitor is there to reap it
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
