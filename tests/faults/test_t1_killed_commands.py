"""T1, through the command line: sixteen of `penstock run`, killed at random, never pass their limit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import penstock
import pytest
from configuring import configure
from intervals import most_at_once
from penstock.engine import Engine
from penstock.store.contract import Event

from faults.record import Record
from faults.sampling import sampled

RUN_PROCESSES, RUN_SECONDS, RUN_KILLED = 16, 12.0, 10
COMMAND = """
import os, sys, time
begun = time.monotonic()
with open(sys.argv[1], "a") as file:
    file.write(f"begin {os.getpid()} {begun}\\n")
time.sleep(0.2)
with open(sys.argv[1], "a") as file:
    file.write(f"end {os.getpid()} {time.monotonic()}\\n")
"""


def inside(path: Path, killed_at: dict[int, float]) -> list[tuple[float, float]]:
    """The intervals in the file; one that was cut short ended when its process group was killed."""
    begun: dict[str, float] = {}
    intervals = []
    for line in path.read_text().splitlines():
        kind, pid, at = line.split()
        if kind == "begin":
            begun[pid] = float(at)
        else:
            intervals.append((begun.pop(pid), float(at)))
    return intervals + [(at, killed_at.get(int(pid), at)) for pid, at in begun.items()]


def holders(engine: Engine, running: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """Those of the processes that hold a slot now, as the store sees it."""
    snapshot = engine.store.snapshot()
    sessions = {session_id for row in snapshot.claims if row.slots for session_id in row.session_ids}
    pids = {row.session.pid for row in snapshot.sessions if row.session.session_id in sessions}
    return [child for child in running if child.pid in pids]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
def test_sixteen_commands_killed_at_random_never_pass_the_limit(store_url: str, record: Record, tmp_path: Path) -> None:
    limit, log, rng = 3, tmp_path / "intervals", random.Random(3)
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    engine = penstock.connect(store_url)
    configure(engine, pools={"limits": {"p": limit}})
    command = [sys.executable, "-m", "penstock", "--store", store_url, "run", "--pool", "p", "--"]
    command += [sys.executable, "-S", str(script), str(log)]
    environment = os.environ | {"PENSTOCK_SESSION_TTL_SECONDS": "4"}
    killed, killed_holders, killed_at, stop = 0, 0, dict[int, float](), time.monotonic() + RUN_SECONDS
    running: list[subprocess.Popen[bytes]] = []
    with sampled(engine) as most_seen:
        try:
            while time.monotonic() < stop or killed < RUN_KILLED or killed_holders < 3:  # on a busy machine, longer
                running = [child for child in running if child.poll() is None]
                while len(running) < RUN_PROCESSES:
                    running.append(subprocess.Popen(command, env=environment, start_new_session=True))
                time.sleep(rng.uniform(0.5, 1.0))
                holding = holders(engine, running)
                if not holding:
                    continue  # they are still starting
                victim = rng.choice(holding if rng.random() < 0.7 else running)
                killed_holders += victim in holding
                members = _group(victim.pid)
                os.killpg(victim.pid, signal.SIGKILL)
                victim.wait()
                at = time.monotonic()
                killed_at |= dict.fromkeys(members, at)
                killed += 1
            for child in running:
                assert child.wait(60) in (0, -signal.SIGKILL)
        finally:
            for child in running:
                child.kill()
    intervals = inside(log, killed_at)
    ran = len(intervals)
    over = max(0, most_at_once(intervals) - limit, most_seen["pool:p"] - limit)
    done = f"16 of `penstock run`, limit {limit}: {ran} ran, {killed} killed, {killed_holders} of them while they held"
    record(done=done, what="over the limit", figure=over, bar=0)
    assert ran >= RUN_KILLED
    assert over == 0
    # Every slot is usable again: all of them at once.
    with engine.hold(f"p:{limit}", wait_timeout_seconds=4 + 3 + 10) as lease:
        assert len(lease.slots) == limit
    assert [row for row in engine.store.history() if row.event is Event.EXPIRED], "no killed holder had to be reaped"
    engine.close()


def _group(leader: int) -> list[int]:
    """The processes of a group: the killed command is among them (a zombie's stat can still be read)."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == leader:
                members.append(int(folder.name))
    return members
