"""`penstock.testing` in a user's test of a flow: the limits of the gate are those of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from penstock.demo.prefect_host import PrefectHost

TEST = """
import time

from penstock_prefect import limited
from prefect import flow, task


@limited("database")
@task
def query(number):
    time.sleep(0.2)
    return number


@limited
@flow(log_prints=True)
def nightly():
    return [future.result() for future in query.map(range(6))]


def test_queries_share_the_database(penstock_limits):
    penstock_limits.configure(pools={"limits": {"database": 2}}, runs={"max_concurrent_runs": 1})
    assert nightly() == [0, 1, 2, 3, 4, 5]
    assert penstock_limits.most_at_once("pool:database") == 2
    assert penstock_limits.most_at_once("runs") == 1
    assert len([claim for claim in penstock_limits.granted if claim.pools]) == 6
    assert penstock_limits.waited
    assert penstock_limits.holding == []
"""


def test_limits_of_a_test_hold_for_the_gate(host: PrefectHost, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["penstock.testing"]\n')
    (tmp_path / "test_nightly.py").write_text(TEST)
    environment = {**os.environ, "PREFECT_API_URL": host.api_url, "PREFECT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
