"""The command line as scripts see it: exit codes, JSON keys, what is changed and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from penstock.cli import COMMANDS
from penstock.cli import penstock as cli
from penstock.store.tables import OLDEST, REVISION

Penstock = Callable[..., "subprocess.CompletedProcess[str]"]
LIMIT_KEYS = {"key", "kind", "capacity", "held", "waiting", "granularity", "source", "description"}


@pytest.fixture
def penstock(tmp_path: Path) -> Penstock:
    """Run `penstock` with a store of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock", "--store", f"sqlite:///{tmp_path / 'p.db'}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)

    return run


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    path = tmp_path / "penstock.yaml"
    path.write_text("concurrency:\n  pools:\n    default_limit: 1\n  runs:\n    max_concurrent_runs: 2\n")
    return path


def test_help_names_every_command(penstock: Penstock) -> None:
    done = penstock("--help")
    assert done.returncode == 0, done.stderr
    assert {"explain", "free", "janitor", "doctor", "completion"} < COMMANDS.keys()
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_help_is_quick_and_says_what_the_commands_say_themselves(penstock: Penstock) -> None:
    code = "import sys; sys.argv = ['penstock', '--help']\nfrom penstock.cli import main\n"
    code += "try: main()\nfinally: assert not {'sqlalchemy', 'pydantic', 'rich'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, summary in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == summary


def test_check_says_good_or_every_fault(penstock: Penstock, tmp_path: Path, block: Path) -> None:
    assert penstock("check", str(block)).returncode == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text("concurrency:\n  pool: {}\n  runs: {max_concurrent_runs: x}\n")
    done = penstock("check", str(bad), "--json")
    assert done.returncode == 1
    assert [(fault["line"], fault["path"]) for fault in json.loads(done.stdout)["faults"]] == [
        (2, "concurrency.pool"),
        (3, "concurrency.runs.max_concurrent_runs"),
    ]
    assert "did you mean `pools`?" in penstock("check", str(bad)).stdout


def test_apply_without_a_terminal_changes_nothing_but_with_yes(penstock: Penstock, block: Path) -> None:
    done = penstock("apply", str(block))
    assert done.returncode == 2
    assert "+ concurrency.pools.default_limit: 1" in done.stdout
    assert as_json(penstock("limits", "list", "--json")) == []
    assert penstock("apply", str(block), "--yes").returncode == 0
    (runs,) = as_json(penstock("limits", "list", "--json"))
    assert runs.keys() == LIMIT_KEYS
    assert (runs["key"], runs["kind"], runs["capacity"], runs["source"]) == ("runs", "runs", 2, "rule")
    assert "nothing to change" in penstock("apply", str(block), "--yes").stdout


def test_pools_set_get_list_delete_and_apply_keeps_or_prunes(penstock: Penstock, block: Path) -> None:
    assert penstock("pools", "set", "database", "2", "--description", "the warehouse").returncode == 0
    pool = as_json(penstock("pools", "get", "database", "--json"))
    assert pool.keys() == LIMIT_KEYS | {"name"}
    assert (pool["name"], pool["capacity"], pool["source"], pool["description"], pool["granularity"]) == (
        "database",
        2,
        "explicit",
        "the warehouse",
        "op",
    )
    done = penstock("apply", str(block), "--yes")
    assert "pool database stays at 2" in done.stdout
    assert [each["name"] for each in as_json(penstock("pools", "list", "--json"))] == ["database"]
    assert penstock("apply", str(block), "--prune", "--yes").returncode == 0
    assert penstock("pools", "delete", "database").returncode == 1
    assert penstock("pools", "get", "nowhere").returncode == 1
    assert penstock("pools", "set", "a", "10001").returncode == 2
    assert penstock("pools", "set", "a b", "1").returncode == 2
    (pool,) = as_json(penstock("pools", "list", "--json"))
    assert (pool["capacity"], pool["source"]) == (1, "default")


def test_tables_show_names_as_they_are_and_uncut(penstock: Penstock) -> None:
    names = ["a[/b]", "x[bold]", "n" * 255]
    for name in names:
        assert penstock("pools", "set", name, "1").returncode == 0
    done = penstock("limits", "list")
    assert done.returncode == 0, done.stderr
    for name in names:
        assert f"pool:{name} " in done.stdout


def test_db_and_status(penstock: Penstock) -> None:
    assert penstock("db", "upgrade").returncode == 0
    assert f"schema {REVISION}, this version works with {OLDEST} to {REVISION}" in penstock("db", "current").stdout
    assert as_json(penstock("status", "--json")) == {"limits": [], "leases": [], "waiters": [], "sessions": []}
    assert penstock("status").returncode == 0


def test_a_store_that_cannot_be_reached(penstock: Penstock) -> None:
    done = penstock("--store", "postgresql://u:secret@127.0.0.1:1/x", "status")
    assert done.returncode == 69
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_file_says_does_not_act_on_the_terminal(penstock: Penstock, tmp_path: Path) -> None:
    """A direction mark would turn round what is read after it."""
    path = tmp_path / "odd.yaml"
    for text, stream in (
        ('concurrency: {"pools\\u202e": {}}', "stdout"),
        ('concurrency: {runs: {tag_concurrency_limits: [{key: "dagster/\\u202e", limit: 1}]}}', "stderr"),
    ):
        path.write_text(text)
        done = penstock("check", str(path))
        assert "\u202e" not in done.stdout + done.stderr
        assert "\\u202e" in getattr(done, stream)
