"""What others chose (names, ids, links, files) acts on nobody's terminal, and breaks no command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import penstock
import pytest
from hostile import TEXTS, UNSTORABLE, acts, usable
from penstock import changes
from penstock.config import PoolLimit

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ARGUMENTS = TEXTS | {name: UNSTORABLE[name] for name in ("surrogate", "too long")}
"""What an argument can be: never a NUL, nor both halves of a pair."""
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


@on_sqlite
@pytest.mark.parametrize("hostile", ARGUMENTS.values(), ids=ARGUMENTS)
def test_no_command_lets_it_act_on_the_terminal(hostile: str, cli: Cli, store_url: str) -> None:
    """Usage errors repeated an option or a file's name as it was, escapes and all."""
    command_lines = [
        ["pools", "set", hostile, "1"],
        ["pools", "set", usable(hostile), "1", "--description", hostile],
        ["pools", "set", "a", hostile],
        ["pools", "get", hostile],
        ["pools", "delete", hostile],
        ["limits", "set", f"run_tag:{hostile}", "1"],
        ["limits", "set", hostile, "1"],
        ["limits", "delete", hostile],
        ["limits", "list"],
        ["pools", "list"],
        [
            "run",
            "--pool",
            usable(hostile),
            "--tag",
            f"{hostile}={hostile}",
            "--run-id",
            hostile[:3000],
            "--op-id",
            hostile,
            "--",
            "true",
        ],
        ["run", "--on-blocked", hostile, "--", "true"],
        ["run", "--", hostile[:200]],
        ["explain", hostile],
        ["free", hostile, "--yes"],
        ["free", "--run", hostile, "--yes"],
        ["check", hostile],
        ["apply", hostile, "--yes"],
        ["import", "airflow-pools", hostile],
        ["import", "prefect-limits", "--api-url", hostile],
        ["migrate", "dagster", hostile],
        ["migrate", "dagster", ".", "--instance-url", hostile],
        ["export", "airflow-pools"],
        ["db", "forget", hostile, "--yes"],
        ["completion", hostile],
        ["status"],
        ["doctor"],
        [f"--{hostile}"],
        ["--store", hostile, "status"],
        ["status", f"-{hostile}"],
        [hostile],
    ]
    for words in command_lines:
        done = cli(*words)
        assert done.returncode in {0, 1, 2, 69, 75, 126, 127}, (words, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        assert not acts(done.stdout), (words, done.stdout)
        assert not acts(done.stderr), (words, done.stderr)
    with penstock.connect(store_url) as engine:
        if hostile in UNSTORABLE.values():
            return
        changes.set_pool(engine, usable(hostile), PoolLimit(limit=1))
        with engine.acquire(engine.claim(usable(hostile), op_id=hostile, url=hostile)):
            for words in (["status"], ["explain", hostile], ["limits", "list"]):
                done = cli(*words)
                assert (done.returncode, acts(done.stdout), acts(done.stderr)) == (0, set(), set())
                told = json.loads(cli(*words, "--json").stdout)
            assert f"pool:{usable(hostile)}" in [row["key"] for row in told]
