"""Thirty mapped tasks after a limit of three, on a real Airflow, for each way of waiting.

In a plain run tasks of 2 s with `defer`; `PENSTOCK_TEST_WAYS=all` does all three ways, with tasks of 2 s and of 20 s.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable

import pytest
from airflow_trace import State, Trace
from intervals import Interval, most_at_once
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.contract import Event
from tables import table

pytestmark = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
LIMIT, TASKS = 3, 30
LIMITS = {"pools": {"limits": dict.fromkeys(("thirty_defer", "thirty_block", "thirty_reschedule"), LIMIT)}}
CASES = [("defer", 2.0)]
if os.environ.get("PENSTOCK_TEST_WAYS") == "all":
    CASES += [("block", 2.0), ("reschedule", 2.0), ("defer", 20.0), ("block", 20.0), ("reschedule", 20.0)]
HEADS = (
    "way",
    "task s",
    "most at once",
    "retries",
    "longest in a worker before work",
    "in workers while waiting: most",
)
HEADS = (*HEADS, "after the last short block", "whole s", "ideal s", "over s")


def in_workers(states: list[State]) -> dict[int, list[Interval]]:
    """Map index → from when to when its process ran, in seconds since 1970."""
    ran: dict[int, list[Interval]] = defaultdict(list)
    began: dict[int, float] = {}
    for state in states:
        if state.task_id is None or state.map_index < 0:
            continue
        if state.state == "running":
            began[state.map_index] = state.at
        elif state.map_index in began:
            ran[state.map_index].append((began.pop(state.map_index), state.at))
    return ran


@pytest.fixture(scope="module")
def pools(started_host: AirflowHost) -> None:
    """Airflow's own pool for each way."""
    for name in {f"thirty_{way}" for way, _ in CASES}:
        started_host.create_pool(name, TASKS)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("way", "seconds"), CASES)
def test_thirty_tasks_wait_for_three_slots(
    way: str,
    seconds: float,
    host: AirflowHost,
    engine: Engine,
    trace: Trace,
    intervals: Callable[[str], list[Interval]],
    tables: list[str],
    pools: None,
) -> None:
    dag_id, run_id = f"thirty_{way}", f"of_{seconds:g}_s"
    since = time.time()
    host.trigger(dag_id, run_id, {"seconds": seconds})
    host.wait_for_runs(dag_id, [run_id], seconds=300 + 4 * TASKS * seconds / LIMIT)
    states = trace.states(dag_id, since=since)
    ended = max(state.at for state in states if state.task_id is None)
    label = f"airflow/tests {dag_id}/{run_id} work["
    granted = {
        int((row.label or "").removeprefix(label).rstrip("]")): row.at / 1e6
        for row in engine.store.history()
        if row.event is Event.GRANTED and (row.label or "").startswith(label)
    }
    # In a worker without a slot: what ran before the grant.
    waiting = {
        index: [(began, min(end, granted[index])) for began, end in ran if began < granted[index]]
        for index, ran in in_workers(states).items()
    }
    assert len(waiting) == len(granted) == TASKS
    short_blocks_over = max(spans[0][1] for spans in waiting.values() if spans)
    late = [span for spans in waiting.values() for span in spans if span[0] >= short_blocks_over]
    longest = max(end - began for spans in waiting.values() for began, end in spans)
    whole, ideal = ended - since, TASKS * seconds / LIMIT
    attempts = {state.try_number for state in states if state.task_id is not None and state.state == "success"}
    at_once = most_at_once(intervals(dag_id))
    in_all = most_at_once(span for spans in waiting.values() for span in spans)
    row = [way, f"{seconds:g}", str(at_once), str(max(attempts) - 1), f"{longest:.1f}", str(in_all)]
    row += [str(most_at_once(late)), f"{whole:.0f}", f"{ideal:.0f}", f"{whole - ideal:.0f}"]
    tables.append(table(f"Airflow: {TASKS} mapped tasks, limit {LIMIT}", HEADS, [row]))
    assert len(intervals(dag_id)) == TASKS
    assert at_once == LIMIT
    assert attempts == {1}
    if way == "defer":
        assert not late, "it does not come back to a worker before its slot is there"
