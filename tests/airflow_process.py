"""Asking a fresh process with Airflow in it, as each of Airflow's own processes is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Only what was given, no Airflow or Penstock setting of who runs the tests."""
    ours = ("AIRFLOW", "PENSTOCK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    folder = str(Path(__file__).parent)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "AIRFLOW_HOME": str(home), "PYTHONPATH": folder, "PATH": path, **given}


def ask(code: str, home: Path, **given: str) -> Any:
    """What the code prints last, as JSON. `given` are environment variables."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home, given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
