"""A store that goes away under a real Airflow: what each task does and says.

`PENSTOCK_TEST_OUTAGE_SECONDS=60` makes it a longer one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow_trace import Trace, worded
from intervals import Interval
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock_airflow import runs
from proxy import TcpProxy
from rival import Rival
from tables import table

TTL_SECONDS = 5.0
OUTAGE_SECONDS = float(os.environ.get("PENSTOCK_TEST_OUTAGE_SECONDS", "12"))
pytestmark = [
    pytest.mark.parametrize("store_url", ["postgresql"], indirect=True),
    pytest.mark.timeout(300 if OUTAGE_SECONDS < runs.PATIENCE_SECONDS else 900),
]
LIMITS = {
    "pools": {"limits": dict.fromkeys(("away_comes", "away_ends", "away_holds", "away_waits"), 1)},
    "runs": {"max_concurrent_runs": 100},
}
SAYS = {
    "away_waits": ["away_waits: 1 of 1", "is granted"],
    "away_ends": ["the slots could not be given back, they are freed when they expire"],
    "away_holds": ["has lost its slots: the store could not be reached in time"],
    "away_comes": ["the store is away, nothing starts before it answers; trying again"],
}


def test_nothing_starts_while_the_store_is_away_and_all_go_on_afterwards(
    host: AirflowHost,
    engine: Engine,
    trace: Trace,
    store_proxy: TcpProxy,
    intervals: Callable[[str], list[Interval]],
    tmp_path: Path,
    tables: list[str],
) -> None:
    """One task waits deferred, one ends, one works on past its TTL (5 s), and one comes while the store is away."""
    wait_for = host.processes.wait_for
    since = time.time()

    the_end = tmp_path / "the end"

    def start(name: str, seconds: float) -> None:
        host.create_pool(name, 16)
        conf = {"name": name, "seconds": seconds}
        host.trigger(name, "away", conf | ({"until": str(the_end)} if name == "away_ends" else {}))

    def says(name: str, words: str) -> bool:
        return words in host.task_log(name, "away", "work")

    rival = Rival(engine, "away_waits", hold_seconds=3600)
    rival.step()
    start("away_waits", 0.5)
    wait_for(
        "the trigger waits", lambda: "deferred" in worded(trace.states("away_waits", since=since), "work"), seconds=60
    )
    start("away_holds", OUTAGE_SECONDS - 2)
    start("away_ends", 60)
    wait_for("they work", lambda: bool(intervals("away_holds") and intervals("away_ends")), seconds=60)
    store_proxy.cut()
    cut = time.monotonic()
    the_end.touch()
    try:
        rival.release()
        start("away_comes", 0.5)
        for name in ("away_ends", "away_holds", "away_comes"):
            wait_for(f"{name} says what it does", lambda name=name: says(name, SAYS[name][0]), seconds=60)  # type: ignore[misc]
        wait_for("the outage is over", lambda: time.monotonic() > cut + OUTAGE_SECONDS, seconds=2 * OUTAGE_SECONDS)
        assert not intervals("away_waits")
        assert not intervals("away_comes")
    finally:
        store_proxy.mend()
    back = time.monotonic()
    rows = []
    for name, words in SAYS.items():
        host.wait_for_runs(name, ["away"], seconds=90)
        assert all(says(name, word) for word in words), host.task_log(name, "away", "work")
        ((began, _),) = intervals(name)
        states = worded(trace.states(name, since=since), "work")
        rows.append((name, "; ".join(words), states, f"{began - back:.1f}" if began > back else "before"))
        assert max(state.try_number for state in trace.states(name, since=since)) == 1
    heads = ("task", "what it says", "states", "began so many s after the store was back")
    tables.append(table(f"Airflow: the store goes away for {back - cut:.0f} s", heads, rows))
    if back - cut > runs.PATIENCE_SECONDS:  # a callback has given up: the first task of a later run asks after its run
        settled = back + runs.FORGOTTEN_SECONDS + TTL_SECONDS
        wait_for("a run has been silent for long", lambda: time.monotonic() > settled, seconds=2 * settled)
        host.trigger("away_comes", "later", {"name": "away_comes", "seconds": 0.5})
        host.wait_for_runs("away_comes", ["later"], seconds=90)
    wait_for("every slot is free", lambda: not engine.status()["leases"], seconds=60)
