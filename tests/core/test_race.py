"""Races of real processes, killed and stopped at random, judged by their own clocks: thirty-two forked from a warm
parent over four limits, and sixteen of `penstock run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import penstock
import pytest
import racers
from configuring import configure
from intervals import most_at_once, most_held
from penstock.engine import Engine
from penstock.store.contract import Event

SECONDS = float(os.environ.get("PENSTOCK_TEST_RACE_SECONDS", "15"))
"""Of the race of thirty-two, on each store; 60 in CI."""
TTL_SECONDS, GRACE_SECONDS = 2.0, 3.0
CAPACITIES = {"pool:one": 1, "pool:three": 3, "pool:five": 5, "run_tag:team=x": 2}

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


@dataclass
class Hold:
    """One lease by its holder's own clock. `told_after`: seconds from the end of a stop to being told of the loss."""

    racer: str
    begun: float
    ended: float
    fences: dict[str, dict[str, int]]
    waited: float
    lost: bool = False
    stale: dict[str, Any] = field(default_factory=dict)


def holds(folder: Path, outcome: dict[str, Any]) -> list[Hold]:
    """What the racers wrote. A hold that was cut short ended with its process.

    A process that is stopped does nothing, so where a stop cost it the lease its hold ended when it was stopped. For a
    moment after it goes on it may believe that it holds (only fencing stops it): what it then asks of the store is
    looked at apart. Stops that it survived as a holder, and losses without a stop, change nothing: those count in full.
    """
    found: list[Hold] = []
    for path in folder.iterdir():
        mine: dict[str, Hold] = {}
        for event in map(json.loads, path.read_text().splitlines()):
            if event["event"] == "begin":
                until = outcome["dead_at"][path.name]
                mine[event["claim"]] = Hold(path.name, event["at"], until, event["fences"], event["waited"], lost=True)
            elif event["event"] == "end":
                mine[event["claim"]].ended, mine[event["claim"]].lost = event["at"], event["lost"]
            elif event["event"] == "lost" and event["claim"] in mine:
                mine[event["claim"]].stale = event
        for name, since, _ in outcome["stops"]:
            for hold in mine.values() if name == path.name else ():
                if hold.lost and hold.begun < since < hold.ended:
                    hold.ended = since
        found += mine.values()
    return found


def assert_epochs_grow(found: list[Hold]) -> None:
    """In the order of time, each holder of a slot has a higher epoch than all before; a stale one is refused."""
    by_slot: dict[tuple[str, str], list[tuple[float, int, Hold]]] = defaultdict(list)
    for hold in found:
        for limit, slots in hold.fences.items():
            for slot, epoch in slots.items():
                by_slot[limit, slot].append((hold.begun, epoch, hold))
    for slot, line in by_slot.items():
        line.sort(key=lambda one: one[0])
        epochs = [epoch for _, epoch, _ in line]
        assert epochs == sorted(set(epochs)), f"{slot}: epochs {epochs}"
        for (_, _, hold), (begun, _, after) in pairwise(line):
            if hold.stale and hold.stale["asked"] > begun:
                assert not hold.stale["taken"], f"{slot}: {hold} was still heard after {after}"


@contextmanager
def sampled(engine: Engine) -> Iterator[dict[str, int]]:
    """Meanwhile, read the store again and again: limit → the most that it ever showed as held."""
    most, over = dict[str, int](), threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            for row in engine.store.limit_rows():
                most[row.key] = max(most.get(row.key, 0), row.held)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield most
    finally:
        over.set()
        sampler.join()


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_thirty_two_processes_over_four_limits_killed_and_stopped_at_random(
    store_kind: str, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "racers"
    folder.mkdir()
    engine = penstock.connect(store_url)
    configure(
        engine,
        pools={"limits": {"one": 1, "three": 3, "five": 5}},
        runs={"tag_concurrency_limits": [{"key": "team", "value": "x", "limit": 2}]},
    )
    race = racers.Race(
        store_url, str(folder), seed=1, processes=32, seconds=SECONDS, ttl_seconds=TTL_SECONDS, long_stop_seconds=6.0
    )
    with sampled(engine) as most_seen:
        command = [sys.executable, racers.__file__, json.dumps(asdict(race))]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS + 90)
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert not outcome["failed"], f"{outcome['failed']}\n{run.stderr.partition('Traceback')[2][:4000]}"
    found = holds(folder, outcome)
    most = {
        limit: most_held((hold.begun, hold.ended, len(hold.fences.get(limit, ()))) for hold in found)
        for limit in CAPACITIES
    }
    # What the killed ones held is reaped; then every slot is usable again, all of them at once.
    begun = time.monotonic()
    while left := {row.key: (row.held, row.waiting) for row in engine.store.limit_rows() if row.held or row.waiting}:
        if time.monotonic() > begun + TTL_SECONDS + GRACE_SECONDS + 5:
            break
        engine.janitor.sweep_if_due()
        time.sleep(0.05)
    usable_after = time.monotonic() - begun
    with engine.hold("one", "three:3", "five:5", run_id="last", run_tags={"team": "x"}, wait_timeout_seconds=10):
        pass
    engine.close()
    with capsys.disabled():
        print(_table(store_kind, found, outcome, most, most_seen, usable_after))
    assert all(most[limit] <= capacity for limit, capacity in CAPACITIES.items()), most
    assert all(most_seen[limit] <= capacity for limit, capacity in CAPACITIES.items()), most_seen
    assert not left
    assert_epochs_grow(found)
    assert outcome["kills"] >= SECONDS / 2
    assert all(most_seen[limit] == capacity for limit, capacity in CAPACITIES.items()), "no race: a limit stayed free"
    assert any(hold.stale for hold in found), "no race: nobody was stopped until its lease was lost"


def _table(
    store_kind: str,
    found: list[Hold],
    outcome: dict[str, Any],
    most: dict[str, int],
    most_seen: dict[str, int],
    usable_after: float,
) -> str:
    lines = [
        f"\n{store_kind}: 32 processes for {SECONDS:g} s: {len(found)} leases, {outcome['kills']} killed, "
        f"{len(outcome['stops'])} stopped; {sum(hold.lost for hold in found)} holders killed or out of their lease; "
        f"all slots usable {usable_after:.1f} s after the end; longest wait {max(hold.waited for hold in found):.2f} s",
        f"{'limit':16}{'capacity':>9}{'grants':>8}{'most at once':>14}{'in the store':>14}{'longest wait':>14}",
    ]
    for limit, capacity in CAPACITIES.items():
        mine = [hold for hold in found if limit in hold.fences]
        longest = max((hold.waited for hold in mine), default=0.0)
        lines.append(
            f"{limit:16}{capacity:>9}{len(mine):>8}{most[limit]:>14}{most_seen.get(limit, 0):>14}{longest:>12.2f} s"
        )
    return "\n".join(lines)


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
def test_sixteen_commands_killed_at_random_never_pass_the_limit(store_url: str, tmp_path: Path) -> None:
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
    print(f"limit {limit}: {ran} commands ran, {killed} killed, most at once {most_at_once(intervals)}")
    assert ran >= RUN_KILLED
    assert most_seen["pool:p"] <= limit
    assert most_at_once(intervals) <= limit
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
