"""`penstock janitor`: what died is reaped, runs are asked after, what is free is granted, what is old is dropped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.hookspecs import hookimpl
from penstock.janitor import Janitor as Upkeep
from penstock.settings import Settings
from situations import CALM, SECOND, Configure, NewEngine, held, queued

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Janitor = Callable[..., "subprocess.Popen[str]"]
on_sql = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
MORTAL = dataclasses.replace(CALM, session_ttl_seconds=600)  # it does not beat before a janitor has come


def die(store: Any, engine: Engine, *pools: str, seconds_ago: float = 3000.0) -> None:
    """A holder whose session expired so long ago, by the clock of everybody else.

    Not before the last look of whoever is looking: that is taken for a clock that was wrong for a moment.
    """
    lives = engine.settings.session_ttl_seconds + store.times.grace_seconds
    store.clock_shift = -int((lives + seconds_ago) * SECOND)
    engine.acquire(engine.claim(*pools))
    store.clock_shift = 0


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    return new_engine(settings=CALM)


@pytest.fixture
def janitor(store_url: str) -> Iterator[Janitor]:
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "penstock", "--store", store_url, "janitor", *arguments]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return children[-1]

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.communicate()


@on_sql
def test_once_does_one_round_and_says_what(
    store: Any, cli: Cli, new_engine: NewEngine, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    die(store, new_engine(settings=MORTAL), "a")
    queued(engine, "a")
    done = cli("janitor", "--once")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Z ended 1 that nobody stood behind any more; granted 1\n")
    assert held(engine, "pool:a") == 1
    assert cli("janitor", "--once").stdout.endswith("Z nothing to do\n")
    told = json.loads(cli("janitor", "--once", "--json").stdout)
    assert told.keys() == {"at", "expired", "runs_ended", "granted", "history", "limits"}


@on_sqlite
def test_old_history_and_idle_limits_are_dropped(store: Any, cli: Cli, engine: Engine, configure: Configure) -> None:
    store.clock_shift = -40 * 86_400 * SECOND
    configure(pools={"default_limit": 1})
    with engine.acquire(engine.claim("old")):
        pass
    told = json.loads(cli("janitor", "--once", "--json").stdout)
    assert (told["history"], told["limits"]) == (3, 1)
    assert "pool:old" not in {row.key for row in store.limit_rows()}


@on_sql
def test_it_goes_on_until_it_is_told_to_stop(
    store: Any, janitor: Janitor, new_engine: NewEngine, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    child = janitor("--interval", "0.1")
    assert child.stdout is not None
    for _ in range(2):
        die(store, new_engine(settings=MORTAL), "a", seconds_ago=-1.0)
        assert "ended 1 that nobody stood behind any more" in child.stdout.readline()
    child.terminate()
    assert child.wait(30) == 0
    assert held(engine, "pool:a") == 0


@on_sqlite
def test_sigint_stops_it_and_rounds_that_do_nothing_say_nothing(
    janitor: Janitor, store: Any, new_engine: NewEngine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    child = janitor("--interval", "0.1", "--json")
    die(store, new_engine(settings=MORTAL), "a", seconds_ago=-1.0)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["expired"] == 1
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (0, "", "")


@on_sqlite
def test_a_store_that_is_away_is_waited_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[int] = []

    def upkeep(_janitor: Upkeep) -> dict[str, int]:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise StoreUnavailable("the store is away")
        os.kill(os.getpid(), signal.SIGTERM)
        return {"expired": 0, "runs_ended": 0, "history": 0, "limits": 0}

    monkeypatch.setattr(Upkeep, "upkeep", upkeep)
    assert cli("janitor", "--interval", "0.1").returncode == 0
    assert len(rounds) == 2
    assert "trying again in 100 ms: the store is away" in caplog.text
    rounds.clear()
    assert cli("janitor", "--once").returncode == 69


@on_sqlite
@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan", "3601"])
def test_bad_usage(cli: Cli, interval: str) -> None:
    assert cli("janitor", "--interval", interval).returncode == 2


def test_upkeep_asks_the_hosts_after_runs(new_engine: NewEngine, configure: Configure) -> None:
    class Over:
        @hookimpl
        def penstock_holder_alive(self, claim: Any) -> bool:
            return bool(claim.claim.run_id != "over")

    engine = new_engine(Over(), settings=Settings(store_retry_seconds=0, sweep_seconds=10**6))
    configure(runs={"max_concurrent_runs": 2})
    for run_id in ("over", "alive"):
        engine.request(engine.run_claim(run_id), probed=True).step()
    assert engine.janitor.upkeep() == {"expired": 0, "runs_ended": 1, "history": 0, "limits": 0}
    assert held(engine, "runs") == 1
