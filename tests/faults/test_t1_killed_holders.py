"""T1 and T7: a race of thirty-two processes over four limits, killed and stopped at random, judged by their own clocks.

Bars: T1 no limit is ever passed; what a killed holder held is free within TTL + grace + 1 s. T7 a stale epoch is always
refused; who lost its lease while it was stopped is told within 1 s of going on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import penstock
import pytest
from configuring import configure
from intervals import most_held
from penstock.engine import Engine
from penstock.store.contract import Event

from faults import racers
from faults.record import LONG, Record, Recorder
from faults.sampling import sampled

SECONDS = float(os.environ.get("PENSTOCK_TEST_RACE_SECONDS", "360" if LONG else "15"))
"""Of the race, on each store."""
KILL_PAUSE_SECONDS = (0.1, 0.5) if LONG else (0.4, 1.2)
"""Between two kills: in the long form a thousand in all."""
TTL_SECONDS, GRACE_SECONDS = 2.0, 3.0
CAPACITIES = {"pool:one": 1, "pool:three": 3, "pool:five": 5, "run_tag:team=x": 2}


@dataclass
class Hold:
    """One lease by its holder's own clock. `told_after`: seconds from the end of a stop to being told of the loss."""

    racer: str
    claim: str
    begun: float
    ended: float
    fences: dict[str, dict[str, int]]
    waited: float
    lost: bool = False
    stale: dict[str, Any] = field(default_factory=dict)
    told_after: float | None = None


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
                facts = (path.name, event["claim"], event["at"], until, event["fences"], event["waited"])
                mine[event["claim"]] = Hold(*facts, lost=True)
            elif event["event"] == "end":
                mine[event["claim"]].ended, mine[event["claim"]].lost = event["at"], event["lost"]
            elif event["event"] == "lost" and event["claim"] in mine:
                mine[event["claim"]].stale = event
        for name, since, until in outcome["stops"]:
            for hold in mine.values() if name == path.name else ():
                if hold.lost and hold.begun < since < hold.ended:
                    hold.ended = since
                    hold.told_after = next((at - until for at in hold.stale.get("told", ())), None)
        found += mine.values()
    return found


def stale_that_were_heard(engine: Engine, found: list[Hold]) -> tuple[int, int]:
    """In the order of time, each holder of a slot has a higher epoch than all before.

    Of those who asked the store for something though somebody else had their slot by then: how many, and how many of
    them got anything. A session that the store has not ended may beat: the process gave up the lease by itself, early.
    """
    expired = {row.claim_id for row in engine.store.history() if row.event is Event.EXPIRED}
    by_slot: dict[tuple[str, str], list[tuple[float, int, Hold]]] = defaultdict(list)
    for hold in found:
        for limit, slots in hold.fences.items():
            for slot, epoch in slots.items():
                by_slot[limit, slot].append((hold.begun, epoch, hold))
    asked, heard = set[str](), set[str]()
    for slot, line in by_slot.items():
        line.sort(key=lambda one: one[0])
        epochs = [epoch for _, epoch, _ in line]
        assert epochs == sorted(set(epochs)), f"{slot}: epochs {epochs}"
        for (_, _, hold), (begun, _, _) in pairwise(line):
            if hold.stale and hold.stale["asked"] > begun:
                asked.add(hold.claim)
                taken = set(hold.stale["taken"]) - (set() if hold.claim in expired else {"beat"})
                heard |= {hold.claim} if taken else set()
    return len(asked), len(heard)


def freed_after(engine: Engine, found: list[Hold], outcome: dict[str, Any]) -> list[float]:
    """For each holder that was killed: how long after its death the store freed its slots."""
    offset = time.time() - time.monotonic()
    expired = {row.claim_id: row.at / 1e6 - offset for row in engine.store.history() if row.event is Event.EXPIRED}
    killed = set(outcome["killed"])
    return [
        expired[hold.claim] - outcome["dead_at"][hold.racer]
        for hold in found
        if hold.racer in killed and hold.claim in expired and hold.ended == outcome["dead_at"][hold.racer]
    ]


def together(engine: Engine, found: list[Hold], limit: str) -> list[str]:
    """Those that held slots of the limit beside each other, by their own clocks, and what the store's history says."""
    offset = time.time() - time.monotonic()
    said = defaultdict[str, list[str]](list)
    for row in engine.store.history():
        said[row.claim_id or ""].append(f"{row.event.value} {row.at / 1e6 - offset:.3f} {row.detail or ''}")
    line = sorted((hold for hold in found if limit in hold.fences), key=lambda hold: hold.begun)
    beside = {
        hold.claim: hold for one, other in combinations(line, 2) if other.begun < one.ended for hold in (one, other)
    }
    return [f"{hold}: {said[hold.claim]}" for hold in beside.values()]


@pytest.mark.timeout(180 + 2 * SECONDS)
def test_thirty_two_processes_killed_and_stopped_never_pass_a_limit(
    store_kind: str,
    store_url: str,
    record: Record,
    recorder: Recorder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
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
        store_url,
        str(folder),
        seed=1,
        processes=32,
        seconds=SECONDS,
        ttl_seconds=TTL_SECONDS,
        long_stop_seconds=6.0,
        kill_pause_seconds=KILL_PAUSE_SECONDS,
    )
    with sampled(engine) as most_seen:
        command = [sys.executable, racers.__file__, json.dumps(asdict(race))]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS + 90)
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert not outcome["failed"], f"{outcome['failed']}\n{run.stderr[-4000:]}"
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
    freed = freed_after(engine, found, outcome)
    passed = {limit: together(engine, found, limit) for limit, capacity in CAPACITIES.items() if most[limit] > capacity}
    asked, heard = stale_that_were_heard(engine, found)
    engine.close()
    with capsys.disabled():
        print(_table(store_kind, found, outcome, most, most_seen, usable_after))
    over = sum(most[limit] > capacity or most_seen[limit] > capacity for limit, capacity in CAPACITIES.items())
    done = f"32 processes, {len(found)} leases, {len(outcome['killed'])} killed, {len(freed)} of them while they held"
    record(done=done, what="limits that were passed", figure=over, bar=0)
    bar = TTL_SECONDS + GRACE_SECONDS + 1
    assert freed, "no race: nobody was killed while it held"
    record(done=done, what="slots free after their holder's death", figure=max(freed), bar=bar, unit="s")
    told = [hold.told_after for hold in found if hold.told_after is not None]
    assert told, "no race: nobody was stopped until its lease was lost"
    record_stops = recorder.on("T7", store_kind, store_url, "the same race")
    done = f"the same race, {len(outcome['stops'])} stopped, {len(told)} out of their lease by it"
    record_stops(
        done=f"{done}, {asked} of them asked when others had it", what="stale epochs heard", figure=heard, bar=0
    )
    record_stops(done=done, what="told after going on", figure=max(told), bar=1, unit="s")
    assert not passed, passed
    assert all(most_seen[limit] <= capacity for limit, capacity in CAPACITIES.items()), most_seen
    assert not left
    assert heard == 0
    assert len(outcome["killed"]) >= SECONDS / 2
    assert all(most_seen[limit] == capacity for limit, capacity in CAPACITIES.items()), "no race: a limit stayed free"


def _table(
    store_kind: str,
    found: list[Hold],
    outcome: dict[str, Any],
    most: dict[str, int],
    most_seen: dict[str, int],
    usable_after: float,
) -> str:
    lines = [
        f"\n{store_kind}: 32 processes for {SECONDS:g} s: {len(found)} leases, {len(outcome['killed'])} killed, "
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
