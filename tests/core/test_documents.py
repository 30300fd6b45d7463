"""The commands of the README are run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language]


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A folder with what the README's commands expect to find."""
    (tmp_path / "penstock.yaml").write_text(blocks("yaml")[0])
    script = tmp_path / "nightly.sh"
    script.write_text("#!/bin/sh\necho nightly\n")
    script.chmod(0o755)
    return tmp_path


def test_the_commands_on_limits_and_run(shell: Path) -> None:
    lines = [
        line.replace("sqlite:////srv/", f"sqlite:///{shell}/")
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith(("export PENSTOCK", "penstock "))
    ]
    assert len(lines) == 7, lines
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    script = "set -ex\n" + "\n".join(lines)
    done = subprocess.run(
        ["sh", "-c", script], cwd=shell, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nightly\n" in done.stdout
    assert "pool:warehouse" in done.stdout


def test_the_python_block(shell: Path) -> None:
    code = next(block for block in blocks("python") if "penstock.connect" in block)
    environment = os.environ | {"PENSTOCK_STORE_URL": f"sqlite:///{shell}/penstock.db"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'pool:api'" in done.stdout


def test_the_two_commands_are_the_ones_that_ci_and_the_demo_use() -> None:
    one, two = (
        line for block in blocks("console") for line in block.splitlines() if line.startswith("python3 -m venv")
    )
    assert one.endswith("pip install . && .venv/bin/penstock demo")
    assert two.endswith("pip install tox tox-uv && .venv/bin/tox run")
    assert "tox run\n" in (ROOT / ".ci" / "run").read_text()
