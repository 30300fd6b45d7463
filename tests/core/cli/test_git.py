"""The limits in Git: what the page has CI run, from a faulty file in a review to a store that was changed by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages_read import CONFIGURATION, blocks

REVIEW, MERGED, MORNING = blocks(CONFIGURATION, "sh")
Bash = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    """Run a script as CI does, which ends with the first command that fails, on a store of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": path, "PENSTOCK_STORE_URL": f"sqlite:///{tmp_path / 'store.db'}"}

    def run(script: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    return run


def test_a_file_from_review_to_the_store_and_a_store_that_was_changed(bash: Bash, tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("concurrency: {pools: {limits: {database: two}}}\n")
    review = bash(REVIEW)
    assert review.returncode == 1
    assert "penstock.yaml: line 1: concurrency.pools.limits.database" in review.stdout
    file.write_text("concurrency: {pools: {limits: {database: 2}}}\n")
    review = bash(REVIEW)
    assert review.returncode == 0, review.stderr
    assert "+ concurrency.pools.limits.database.limit: 2\n" in review.stdout
    assert bash(MORNING).returncode == 3  # the review has changed nothing
    assert bash(MERGED).returncode == 0
    assert bash(MORNING).returncode == 0
    assert bash("penstock pools set database 5").returncode == 0
    morning = bash(MORNING)
    assert morning.returncode == 3
    assert "~ concurrency.pools.limits.database.limit: 5 -> 2\n" in morning.stdout
    assert bash(MERGED).returncode == 0
    assert bash("penstock pools set by-hand 1").returncode == 0
    assert bash(MORNING).returncode == 0
    assert bash(MORNING.replace("--exit-code", "--exit-code --prune")).returncode == 3


def test_a_store_that_is_away_fails_a_review(bash: Bash, tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("concurrency: {}\n")
    away = "export PENSTOCK_STORE_URL=postgresql://nobody@127.0.0.1:1/none\n"
    assert bash(away + REVIEW).returncode == 1
    assert bash(away + MORNING).returncode == 69
