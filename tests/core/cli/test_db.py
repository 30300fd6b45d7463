"""`penstock db`: the tables, and the installations that were noted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from penstock.errors import DeploymentConflict
from situations import CALM, NewEngine

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
on_sql = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


@on_sql
def test_an_installation_that_moved_is_forgotten_as_the_error_says(cli: Cli, store: Any, new_engine: NewEngine) -> None:
    def start(address: str) -> None:
        new_engine(host="airflow", deployment="team/prod", fingerprint=address, settings=CALM).configuration()

    start("https://old.example")
    with pytest.raises(DeploymentConflict) as conflict:
        start("https://new.example")
    (remedy,) = [part for part in str(conflict.value).split("`") if part.startswith("penstock ")]
    arguments = remedy.split()[1:]
    assert arguments == ["db", "forget", "airflow/team/prod"]
    done = cli(*arguments)
    assert (done.returncode, len(store.deployments())) == (2, 1)
    assert "airflow/team/prod is https://old.example, first seen 2" in done.stdout
    assert cli(*arguments, answer="n\n").stdout.endswith("nothing was changed\n")
    assert len(store.deployments()) == 1
    done = cli(*arguments, "--yes")
    assert (done.returncode, store.deployments()) == (0, ())
    start("https://new.example")
    assert [row.fingerprint for row in store.deployments()] == ["https://new.example"]


@on_sqlite
def test_whoever_still_works_under_the_name_is_counted(cli: Cli, new_engine: NewEngine) -> None:
    engine = new_engine(host="airflow", deployment="prod", fingerprint="https://old.example", settings=CALM)
    engine.acquire(engine.claim("a"))
    done = cli("db", "forget", "airflow/prod", answer="y\n")
    assert (done.returncode, engine.store.deployments()) == (0, ())
    assert "1 of its claims hold or wait now" in done.stdout
    assert len(engine.status()["leases"]) == 1


@on_sqlite
@pytest.mark.parametrize("name", ["airflow/other", "airflow", "/prod", "", "airflow/prod/", "\x1b/x"])
def test_one_that_is_not_known(cli: Cli, new_engine: NewEngine, name: str) -> None:
    new_engine(host="airflow", deployment="prod", fingerprint="https://old.example").configuration()
    done = cli("db", "forget", name, "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is known; known: airflow/prod\n" in done.stderr
    assert "\x1b" not in done.stderr


def test_every_store_notes_and_forgets(store: Any, new_engine: NewEngine) -> None:
    for name in ("b", "a"):
        new_engine(host="airflow", deployment=name, fingerprint=f"https://{name}.example").configuration()
    assert [(row.host, row.name, row.fingerprint) for row in store.deployments()] == [
        ("airflow", "a", "https://a.example"),
        ("airflow", "b", "https://b.example"),
    ]
    assert store.forget("airflow", "a")
    assert not store.forget("airflow", "a")
    assert [row.name for row in store.deployments()] == ["b"]
