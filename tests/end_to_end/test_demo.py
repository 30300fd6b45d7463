"""The README's first command, from the built wheel: both hosts take part, each limit is reached, none is passed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def left_running() -> list[str]:
    """Command lines and environments of processes that a demo started and did not end."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"penstock-demo-" in text and int(folder.name) != os.getpid():
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.timeout(900)
def test_the_demo_keeps_its_promise_and_leaves_nothing_running(home: Path) -> None:
    environment = os.environ | {"PENSTOCK_HOME": str(home)}
    command = [str(Path(sys.executable).with_name("penstock")), "demo", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stderr[-3000:])
    told = json.loads(done.stdout)
    assert told["ok"]
    assert {key: limit["capacity"] for key, limit in told["limits"].items()} == {
        "pool:database": 2,
        "pool:api": 1,
        "runs": 2,
        "run_tag:team=analytics": 1,
    }
    for limit in told["limits"].values():
        assert limit["most_held"] == limit["capacity"]
        assert min(limit["grants"].get(host, 0) for host in ("airflow", "prefect")) >= 1
    deadline = time.monotonic() + 10
    while running := left_running():
        assert time.monotonic() < deadline, running
        time.sleep(0.2)
