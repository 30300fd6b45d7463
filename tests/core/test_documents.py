"""The commands of the pages are run as they stand there, and print what stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import penstock
import pytest
from click.testing import CliRunner
from pages import ROOT, Example, Shell, blocks, examples, plain, rewrite, shell
from penstock import changes
from penstock.cli import COMMANDS
from penstock.cli import penstock as cli
from penstock.config import PoolLimit
from penstock.store.contract import Deployment
from penstock.store.sql import SqlStore

README, COMMAND_LINE = "README.md", "core/docs/command-line.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the README's commands expect to find."""
    (tmp_path / "penstock.yaml").write_text(blocks(README, "yaml")[0])
    script = tmp_path / "nightly.sh"
    script.write_text("#!/bin/sh\necho nightly\n")
    script.chmod(0o755)
    return tmp_path


def test_the_commands_on_limits_and_run(folder: Path) -> None:
    lines = [
        line.replace("sqlite:////srv/", f"sqlite:///{folder}/")
        for block in blocks(README, "console")
        for line in block.splitlines()
        if line.startswith(("export PENSTOCK", "penstock "))
    ]
    assert len(lines) == 7, lines
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    script = "set -ex\n" + "\n".join(lines)
    done = subprocess.run(
        ["sh", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nightly\n" in done.stdout
    assert "pool:warehouse" in done.stdout


def test_the_python_block(folder: Path) -> None:
    code = next(block for block in blocks(README, "python") if "penstock.connect" in block)
    environment = os.environ | {"PENSTOCK_STORE_URL": f"sqlite:///{folder}/penstock.db"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'pool:api'" in done.stdout


def test_the_two_commands_are_the_ones_that_ci_and_the_demo_use() -> None:
    one, two = (
        line for block in blocks(README, "console") for line in block.splitlines() if line.startswith("python3 -m venv")
    )
    assert one.endswith("pip install . && .venv/bin/penstock demo")
    assert two.endswith("pip install tox tox-uv && .venv/bin/tox run")
    assert ".venv-ci/bin/tox run 2>&1 |" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.timeout(240)
def test_it_is_installed_as_the_readme_says(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    build, install = blocks(README, "sh")[0].splitlines()
    assert build.endswith(" .")
    script = f"set -ex\n{build.removesuffix('.')}{ROOT}\n{install}\npenstock --version"
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env=environment | {"PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^penstock.*0\.1\.0$", done.stdout, re.MULTILINE)


def test_no_page_has_strangers_installed() -> None:
    """The name on PyPI is another project's."""
    for page in (path for path in ROOT.rglob("*.md") if not {".tox", "node_modules"} & set(path.parts)):
        assert not re.search(r"pip install [\"']?penstock\b(?!-)", page.read_text()), page


# -- the page on the command line -----------------------------------------------------------------------------------


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Shell]:
    """A shell where the page's files lie, with a store in which an Airflow installation was noted."""
    for name, text in zip(("penstock.yaml", "broken.yaml", "dagster.yaml"), blocks(COMMAND_LINE, "yaml"), strict=True):
        (tmp_path / name).write_text(text)
    for name, text in zip(("pools.json", "limits.json"), blocks(COMMAND_LINE, "json"), strict=True):
        (tmp_path / name).write_text(text)
    store = SqlStore(f"sqlite:///{tmp_path}/penstock.db")
    store.check_schema()
    store.register(Deployment("airflow", "prod", "https://airflow.example"))
    store.close()
    with shell(tmp_path) as opened:
        yield opened


def test_every_command_prints_what_the_page_shows(terminal: Shell, tmp_path: Path) -> None:
    """With PENSTOCK_TEST_REWRITE_PAGES=1 the page is written anew from what they print."""
    shown: list[tuple[Example, list[str]]] = []
    with closing(SqlStore(f"sqlite:///{tmp_path}/penstock.db")) as store:

        def ops() -> int:
            return sum(row.claim.op_id is not None for row in store.snapshot().claims)

        for example in examples(COMMAND_LINE):
            if example.command.endswith("&"):
                before = ops()
                terminal.begin(example.command, lambda before=before: ops() > before)  # type: ignore[misc]
                shown.append((example, []))
            else:
                shown.append((example, terminal.run(example.command)))
    if os.environ.get("PENSTOCK_TEST_REWRITE_PAGES"):
        rewrite(COMMAND_LINE, shown)
    for example, output in shown:
        assert plain(output) == plain(example.output), example.command


def test_the_page_has_every_command() -> None:
    typed = " ".join(example.command for example in examples(COMMAND_LINE))
    for name in COMMANDS.keys() - {"demo", "ui"}:  # which the README and web.md show, and tests of their own run
        assert f"penstock {name}" in typed


def test_the_json_is_what_the_page_says(tmp_path: Path) -> None:
    text = (ROOT / COMMAND_LINE).read_text()
    listed = re.findall(r"^- \*\*(\w+)\*\* \([^:]*\): ((?:`\w+`,?\s+)*`\w+`)", text, re.MULTILINE)
    said = {name: set(re.findall(r"\w+", keys)) for name, keys in listed}
    url = f"sqlite:///{tmp_path}/penstock.db"

    def told(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["--store", url, *arguments, "--json"], standalone_mode=False)
        return json.loads(done.stdout)

    with penstock.connect(url) as engine:
        changes.set_pool(engine, "a", PoolLimit(limit=1))
        engine.acquire(engine.claim("a", op_id="holder"))
        engine.request(engine.claim("a", op_id="waiter")).step()
        status = told("status")
        (file := tmp_path / "penstock.yaml").write_text("concurrency: {pools: {limits: {a: 2}}}")
        keys = {
            "limit": told("limits", "list")[0].keys(),
            "op": told("pools", "ops")[0].keys(),
            "checked": told("check", str(file)).keys(),
            "plan": told("plan", str(file)).keys(),
            "lease": status["leases"][0].keys(),
            "waiter": status["waiters"][0].keys(),
            "session": status["sessions"][0].keys(),
            "match": told("explain", "waiter")["matches"][0].keys() - status["waiters"][0].keys(),
            "held": told("explain", "holder")["matches"][0].keys() - status["leases"][0].keys(),
            "freed": told("free", "waiter", "--yes").keys(),
            "round": told("janitor", "--once").keys(),
            "part": told("doctor")["parts"][0].keys(),
        }
    assert said == {name: set(found) for name, found in keys.items()}
