"""Where the environments of both hosts are, as fixtures: made once for all tests of a session, or found there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from penstock.demo.environments import HOSTS, build_wheel, constraints, make_environment


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PENSTOCK_HOME of the demo, which makes its environments there."""
    return Path(os.environ.get("PENSTOCK_TEST_DEMO_HOME") or tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def bins(home: Path) -> dict[str, Path]:
    """The bin folder of each host's environment, with a driver for PostgreSQL."""
    airflow, prefect = os.environ.get("PENSTOCK_TEST_AIRFLOW_BIN"), os.environ.get("PENSTOCK_TEST_PREFECT_BIN")
    if airflow and prefect:
        return {"airflow": Path(airflow), "prefect": Path(prefect)}
    wheel = build_wheel(home / "demo" / "wheel")
    made = {host: make_environment(host, home / "demo", wheel, print) for host in HOSTS}
    for host, folder in made.items():
        command = [folder / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints(host)]
        subprocess.run([*command, "psycopg[binary]"], check=True, timeout=300)
    return made
