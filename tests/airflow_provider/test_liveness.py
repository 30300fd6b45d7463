"""Every path by which a task's slot comes back, on a real Airflow: all at once, each in a pool with room for one.

A plain process stands behind each task and says when the slot was free. `PENSTOCK_TEST_TIMES=10` does it all ten times.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow_recorded import forget_intervals, recorded
from airflow_trace import Trace, worded
from intervals import Interval, most_at_once
from penstock.demo.airflow_host import FINISHED, AirflowHost
from penstock.demo.processes import HostFailed
from penstock.engine import Engine
from penstock.store.contract import Event
from rival import Rival
from tables import table

TIMES = int(os.environ.get("PENSTOCK_TEST_TIMES", "1"))
pytestmark = [
    pytest.mark.parametrize("store_url", ["postgresql"], indirect=True),
    pytest.mark.timeout(360 * TIMES),  # the first test waits for all rounds
]
TTL_SECONDS, GRACE_SECONDS = 5.0, 3.0
EXPIRED = TTL_SECONDS + GRACE_SECONDS + 2.0  # the sweep, and a machine that is busy
TOLD = 3.0  # the task itself gives the slot back
Act = Callable[[AirflowHost, str, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """`before` counts the task's intervals of work before its slot is free; `free_seconds` bounds how long that takes
    from the end of the last of them.
    """

    done: str
    final: str
    attempts: int = 1
    before: int = 1
    free_seconds: float = TOLD
    act: Act | None = None


def send(number: signal.Signals, whom: str) -> Act:
    def act(_: AirflowHost, __: str, interval: dict[str, Any]) -> None:
        os.kill(interval[whom], number)

    return act


def mark(state: str) -> Act:
    return lambda host, dag_id, interval: host.mark_task(dag_id, interval["run_id"], "holder", state)


def clear(host: AirflowHost, dag_id: str, interval: dict[str, Any]) -> None:
    host.clear_task(dag_id, interval["run_id"], "holder")


WAYS = {
    "live_success": Way(done="returns", final="success"),
    "live_failure": Way(done="raises", final="failed"),
    "live_skip": Way(done="raises AirflowSkipException", final="skipped"),
    "live_retry": Way(done="raises, then returns", final="success", attempts=2),
    "live_execution_timeout": Way(done="works on past its execution_timeout", final="failed"),
    "live_sigterm": Way(done="SIGTERM to the task's process", final="success", act=send(signal.SIGTERM, "pid")),
    "live_sigkill": Way(
        done="SIGKILL to the task's process",
        final="success",
        attempts=2,
        free_seconds=EXPIRED,
        act=send(signal.SIGKILL, "pid"),
    ),
    "live_mark_success": Way(done="marked success", final="success", free_seconds=EXPIRED, act=mark("success")),
    "live_mark_failed": Way(done="marked failed", final="failed", free_seconds=EXPIRED, act=mark("failed")),
    "live_clear": Way(done="cleared", final="success", attempts=2, free_seconds=EXPIRED, act=clear),
    "live_zombie": Way(
        done="SIGKILL to the supervisor: a zombie",
        final="success",
        attempts=2,
        free_seconds=EXPIRED,
        act=send(signal.SIGKILL, "supervisor"),
    ),
    "live_deferral_held": Way(done="defers itself, slot held", final="success", before=2),
    "live_deferral_released": Way(done="defers itself, slot released", final="success"),
    "live_sensor_poke": Way(done="sensor, poke: true at the third time", final="success", before=3),
    "live_sensor_reschedule": Way(done="sensor, reschedule: true at the third time", final="success"),
    "live_setup_teardown": Way(done="setup, work, teardown", final="success"),
    "live_empty": Way(done="EmptyOperator, never in a worker", final="success", before=0),
    "live_dags_test": Way(done="airflow dags test", final="success"),
}
COMPONENTS_KILLED = {
    "live_scheduler_killed": Way(
        done="SIGKILL to the scheduler, started again", final="success", attempts=2, free_seconds=EXPIRED
    ),
    "live_scheduler_restarted": Way(
        done="SIGTERM to the scheduler, started again; another task waits deferred", final="success", before=2
    ),
    "live_triggerer_killed": Way(
        done="waits deferred; SIGKILL to the triggerer, started again", final="success", before=0
    ),
    "live_no_triggerer": Way(done="waits while no triggerer runs", final="success", before=0),
}
LIMITS = {
    "pools": {"limits": dict.fromkeys([*WAYS, *COMPONENTS_KILLED], 1)},
    "runs": {"max_concurrent_runs": 100},
}


@dataclass(frozen=True)
class Seen:
    states: str
    final: str
    attempts: int
    before: int
    free_seconds: float
    most: int

    def row(self, way: Way) -> tuple[str, ...]:
        """As the table has it."""
        return (
            way.done,
            self.states,
            str(max(0, self.attempts - 1)),
            f"{self.free_seconds:.1f}",
            "no" if self.most <= 1 else "YES",
        )


class Round:
    """All paths once. Stepped in one thread: what each has to do next is done as soon as it can be."""

    def __init__(self, host: AirflowHost, engine: Engine, trace: Trace, folder: Path, number: int) -> None:
        self.host, self.engine, self.trace, self.folder = host, engine, trace, folder
        self.run_id, self.since = f"round_{number}", time.time()
        self._rivals: dict[str, Rival] = {}

    def play(self, *, seconds: float) -> dict[str, Seen]:
        """Start them all, act on them, see them end; then what befalls whole components."""
        forget_intervals(self.folder)
        for name in WAYS:
            if name != "live_dags_test":
                self.host.trigger(name, self.run_id)
        command = [Path(sys.executable).with_name("airflow"), "dags", "test", "live_dags_test"]
        self.host.processes.start_to_end("dags_test", command)
        self._until_over(WAYS, seconds=seconds)
        self._kill_triggerer(seconds=seconds)
        self._kill_scheduler(seconds=seconds)
        self._restart_scheduler(seconds=seconds)
        return {name: self._seen(name) for name in [*WAYS, *COMPONENTS_KILLED]}

    def _until_over(self, ways: Mapping[str, Way], *, seconds: float) -> None:
        def over() -> bool:
            working = {one["name"]: one for one in recorded(self.folder)}
            ended = {name for name in ways if self._state(name) in FINISHED}
            for name, way in ways.items():
                self._step(name, way, working.get(name), has_ended=name in ended)
            return len(ended) == len(ways) and all(name in self._rivals and self._rivals[name].is_over for name in ways)

        self.host.processes.wait_for("every path has come to its end", over, seconds=seconds)

    def _step(self, name: str, way: Way, working: dict[str, Any] | None, *, has_ended: bool) -> None:
        """The rival stands behind a task that works; where none ever does, behind its run."""
        if (rival := self._rivals.get(name)) is not None:
            rival.step()
        elif working is not None or (way.before == 0 and has_ended):
            rival = self._rivals[name] = Rival(self.engine, name)
            rival.step()
            if way.act is not None:
                way.act(self.host, name, {**(working or {}), "run_id": self.run_id})

    def _kill_triggerer(self, *, seconds: float) -> None:
        """One task waits deferred when the triggerer is killed, another one comes while there is none."""
        wait_for = self.host.processes.wait_for
        before, after = "live_triggerer_killed", "live_no_triggerer"
        for name in (before, after):
            self._rivals[name] = Rival(self.engine, name, hold_seconds=seconds)
            self._rivals[name].step()
            assert self._rivals[name].has_it
        self.host.trigger(before, self.run_id)
        wait_for("it waits deferred", lambda: self._state(before, "holder") == "deferred", seconds=seconds)
        self.host.processes.kill("triggerer")
        self.trace.forget_job("TriggererJob")
        self.host.trigger(after, self.run_id)
        states = ("deferred", "up_for_reschedule")
        wait_for("it leaves the worker", lambda: self._state(after, "holder") in states, seconds=seconds)
        self.host.start_component("triggerer")
        self.host.wait_until_healthy()
        for name in (before, after):
            self._rivals[name].release()
        self._until_over({before: COMPONENTS_KILLED[before]}, seconds=seconds)

    def _kill_scheduler(self, *, seconds: float) -> None:
        name = "live_scheduler_killed"
        self.host.trigger(name, self.run_id)
        wait_for = self.host.processes.wait_for
        wait_for("it works", lambda: name in {one["name"] for one in recorded(self.folder)}, seconds=seconds)
        self.host.processes.kill("scheduler", alone=True)
        self.trace.forget_job("SchedulerJob")
        self.host.start_component("scheduler")
        self._until_over({name: COMPONENTS_KILLED[name]}, seconds=seconds)

    def _restart_scheduler(self, *, seconds: float) -> None:
        """As an upgrade does: it waits for the task that works, and comes back to one that waits."""
        name, waits = "live_scheduler_restarted", "live_scheduler_waits"
        wait_for = self.host.processes.wait_for
        self.host.trigger(name, self.run_id)
        wait_for("it works", lambda: name in {one["name"] for one in recorded(self.folder)}, seconds=seconds)
        self.host.trigger(waits, self.run_id)
        wait_for("the other waits, and would be next", lambda: self._is_next(waits), seconds=seconds)
        scheduler = self.host.processes.terminate("scheduler")
        (self.folder / f"{name}.let_go").touch()
        try:
            scheduler.wait(60)
        except subprocess.TimeoutExpired:  # seen once in nine times; a machine that shuts down waits no longer either
            os.killpg(scheduler.pid, signal.SIGKILL)
        self.host.start_component("scheduler")
        self._until_over(COMPONENTS_KILLED, seconds=seconds)
        wait_for("the other is over", lambda: self._state(waits) in FINISHED, seconds=seconds)
        assert worded(self.trace.states(waits, since=self.since), "waits").count("|") == 0, "no retry"
        assert self._state(waits, "waits") == "success"

    def _is_next(self, name: str) -> bool:
        """Whether the task of that DAG has been deferred for so long that it may be granted."""
        seen = self.engine.snapshot()
        ops = [row for row in seen.claims if row.claim.op_id and row.claim.run_id == f"{name}/{self.run_id}"]
        return any(not row.session_ids and row.eligible_at <= seen.now for row in ops)

    def _state(self, name: str, task_id: str | None = None) -> str | None:
        states = [state for state in self.trace.states(name, since=self.since) if state.task_id == task_id]
        return states[-1].state if states else None

    def _seen(self, name: str) -> Seen:
        rival = self._rivals[name].interval
        work: list[Interval] = [(one["began"], one["ended"]) for one in recorded(self.folder) if one["name"] == name]
        before = [interval for interval in work if interval[0] < rival[0]]
        states = self.trace.states(name, since=self.since)
        return Seen(
            states=worded(states, "holder"),
            final=self._state(name, "holder") or "",
            attempts=max(state.try_number for state in states if state.task_id == "holder"),
            before=len(before),
            free_seconds=rival[0] - max(ended for _, ended in before) if before else 0.0,
            most=most_at_once([*work, rival]),
        )


@pytest.fixture(scope="module")
def rounds(
    started_host: AirflowHost,
    limits: None,
    engine: Engine,
    trace: Trace,
    intervals_folder: Path,
    tables: list[str],
) -> list[dict[str, Seen]]:
    """What was seen of each path, as many times as were asked for."""
    for pool in [*WAYS, *COMPONENTS_KILLED]:
        started_host.create_pool(pool, 16)
    rounds = []
    for number in range(TIMES):
        began = time.monotonic()
        one = Round(started_host, engine, trace, intervals_folder, number)
        try:
            rounds.append(one.play(seconds=240))
        except HostFailed as error:
            states = "\n".join(f"{name}: {worded(trace.states(name), 'holder')}" for name in LIMITS["pools"]["limits"])
            print(f"{states}\n{started_host.logs()}")  # once: each test that wants the rounds repeats the error itself
            raise HostFailed(str(error).splitlines()[0]) from None
        rows = [seen.row((WAYS | COMPONENTS_KILLED)[name]) for name, seen in rounds[-1].items()]
        heads = ("what happens to the task", "states", "retries", "free after s", "overlap")
        took = time.monotonic() - began
        tables.append(table(f"Airflow, TTL 5 s: round {number + 1} of {TIMES}, {took:.0f} s", heads, rows))
    return rounds


@pytest.mark.parametrize("name", [*WAYS, *COMPONENTS_KILLED])
def test_the_slot_comes_back_and_never_has_two_holders(name: str, rounds: list[dict[str, Seen]]) -> None:
    way = (WAYS | COMPONENTS_KILLED)[name]
    for seen in (one[name] for one in rounds):
        assert seen.most == 1
        assert (seen.final, seen.attempts) == (way.final, way.attempts)
        assert seen.before == way.before
        assert seen.free_seconds < way.free_seconds


def test_without_a_triggerer_a_waiting_task_is_rescheduled_and_says_so(
    host: AirflowHost, rounds: list[dict[str, Seen]]
) -> None:
    assert all("up_for_reschedule" in one["live_no_triggerer"].states for one in rounds)
    log = host.task_log("live_no_triggerer", "round_0", "holder")
    assert "no triggerer runs, so the task is rescheduled instead of deferred; start `airflow triggerer`" in log


def test_the_slot_of_a_run_comes_back_when_it_ends(
    host: AirflowHost, engine: Engine, trace: Trace, rounds: list[dict[str, Seen]], tables: list[str]
) -> None:
    """`airflow dags test` ends its run in its own process, all others in the dag-processor."""
    host.processes.wait_for("every slot is free", lambda: not engine.status()["leases"], seconds=60)
    ends = {
        f"airflow/tests {state.dag_id}/{state.run_id}": state.at
        for name in [*WAYS, *COMPONENTS_KILLED]
        for state in trace.states(name)
        if state.task_id is None and state.state in FINISHED
    }
    released = {
        row.label: row.at / 1e6 for row in engine.store.history() if row.event is Event.RELEASED and "runs" in row.slots
    }
    limited = {label: at for label, at in ends.items() if "live_empty" not in label}  # its run never has a task process
    delays = {label: released[label] - at for label, at in limited.items()}
    rows = [(label.split()[1], f"{delay:.1f}") for label, delay in sorted(delays.items(), key=lambda one: one[1])]
    tables.append(table("Airflow: from a run's end to its slot's return", ("run", "s"), rows))
    assert len(delays) == (len(WAYS) + len(COMPONENTS_KILLED) - 1) * TIMES
    assert statistics.median(delays.values()) < 10
