"""`airflow penstock`: which words need this installation's store, and how its errors end them."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from penstock.cli import COMMANDS, penstock
from penstock.errors import StoreUnavailable
from penstock_airflow import cli, connections

NOWHERE = "no store_url and no conn_id in this process"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation without a store."""
    for name in ("AIRFLOW__PENSTOCK__STORE_URL", "AIRFLOW__PENSTOCK__CONN_ID", "PENSTOCK_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PENSTOCK_DEPLOYMENT", "set anew")  # so that it is as before afterwards
    monkeypatch.setenv("AIRFLOW__PENSTOCK__DEPLOYMENT", "tests")


def ended(*words: str, store: str | None = None) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.run(SimpleNamespace(command=list(words), store=store))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        ((), 2, "Usage: airflow penstock"),
        (("status", "--help"), 0, "Usage: airflow penstock status"),
        (("pools", "set", "-h"), 0, "Usage: airflow penstock pools set"),
        (("pools",), 2, "Usage: airflow penstock pools"),
        (("migrate", "dagster", "FILE"), 0, "max_concurrent_runs: 3"),
        (("check", "FILE"), 1, "no `concurrency:` block"),
        (("completion", "bash"), 0, "complete"),
        (("statsu",), 2, "No such command"),
        (("status",), 1, NOWHERE),
        (("pools", "list"), 1, NOWHERE),
        (("run", "--pool", "database", "--", "echo", "--help"), 1, NOWHERE),
        (("run", "--pool", "database", "echo", "--help"), 1, NOWHERE),
    ],
)
def test_only_what_works_on_a_store_asks_for_one(
    words: tuple[str, ...], code: int, shown: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dagster.yaml"
    file.write_text("run_queue:\n  max_concurrent_runs: 3\n")
    assert ended(*(str(file) if word == "FILE" else word for word in words)) == code
    told = capfd.readouterr()
    assert shown in told.out + told.err
    assert not (tmp_path / "home").exists(), "no store of its own was made"


def test_another_store_may_be_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert ended("db", "upgrade", store=url) == 0
    assert ended("status", "--json", store=url) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["leases"] == []
    assert os.environ["PENSTOCK_DEPLOYMENT"] == "tests", "it is this installation all the same"


def test_airflow_takes_the_store_before_the_command() -> None:
    from argparse import ArgumentParser

    (command,) = cli.get_cli_commands()
    parser = ArgumentParser()
    for argument in command.args:
        argument.add_to_parser(parser)
    asked = parser.parse_args(["--store", "sqlite:////srv/other.db", "status", "--json"])
    assert (asked.store, asked.command) == ("sqlite:////srv/other.db", ["status", "--json"])
    assert parser.parse_args(["status"]).store is None


def test_a_store_that_airflow_does_not_tell_now_is_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def away(_: str) -> Any:
        raise StoreUnavailable("Airflow does not tell its connection 'limits' now")

    monkeypatch.setenv("AIRFLOW__PENSTOCK__CONN_ID", "limits")
    monkeypatch.setattr(connections, "store_url", away)
    assert ended("status") == 69
    assert "penstock: Airflow does not tell its connection 'limits' now" in capfd.readouterr().err


def test_the_commands_without_a_store_are_those_that_take_none() -> None:
    def takes_store(command: click.Command) -> bool:
        if isinstance(command, click.Group):
            return any(map(takes_store, command.commands.values()))
        assert command.callback is not None
        return "store_url" in inspect.signature(command.callback).parameters

    with click.Context(penstock) as context:
        commands = {name: penstock.get_command(context, name) for name in COMMANDS}
    assert {name for name, command in commands.items() if command and not takes_store(command)} == cli.STORELESS
