"""Every path by which a task's slot comes back, on a real Airflow: all at once, each in a pool with room for one.

A plain process stands behind each task and says when the slot was free. `PENSTOCK_TEST_TIMES=10` does it all ten times.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow_rival import Rival
from airflow_trace import Trace, worded
from intervals import Interval, most_at_once
from penstock.demo.airflow_host import FINISHED, AirflowHost
from penstock.engine import Engine

pytestmark = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
TIMES = int(os.environ.get("PENSTOCK_TEST_TIMES", "1"))
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


def kill_scheduler(host: AirflowHost, *_: object) -> None:
    host.processes.kill("scheduler", alone=True)
    host.start_component("scheduler")


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
    "live_deferral_released": Way(done="defers itself, slot released", final="success"),
    "live_sensor_poke": Way(done="sensor, poke: true at the third time", final="success", before=3),
    "live_sensor_reschedule": Way(done="sensor, reschedule: true at the third time", final="success"),
    "live_setup_teardown": Way(done="setup, work, teardown", final="success"),
    "live_dags_test": Way(done="airflow dags test", final="success"),
}
ALONE = {
    "live_scheduler_killed": Way(
        done="SIGKILL to the scheduler, started again",
        final="success",
        attempts=2,
        free_seconds=EXPIRED,
        act=kill_scheduler,
    ),
}
LIMITS = {
    "pools": {"limits": dict.fromkeys([*WAYS, *ALONE, "live_triggerer_killed", "live_empty"], 1)},
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


class Round:
    """All paths once. Stepped in one thread: what each has to do next is done as soon as it can be."""

    def __init__(self, host: AirflowHost, engine: Engine, trace: Trace, folder: Path, number: int) -> None:
        self.host, self.engine, self.trace, self.folder = host, engine, trace, folder
        self.run_id = f"round_{number}"
        self._rivals: dict[str, Rival] = {}
        self._acted: set[str] = set()

    def read(self) -> list[dict[str, Any]]:
        read = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return sorted(read, key=lambda one: float(one["began"]))

    def play(self, ways: dict[str, Way], *, seconds: float) -> dict[str, Seen]:
        """Start them all, act on them, see them end."""
        for name in ways:
            if name != "live_dags_test":
                self.host.trigger(name, self.run_id)
        if "live_dags_test" in ways:
            command = [Path(sys.executable).with_name("airflow"), "dags", "test", "live_dags_test"]
            self.host.processes.start_to_end("dags_test", command)

        def over() -> bool:
            working = {one["name"]: one for one in self.read()}
            for name, way in ways.items():
                self._step(name, way, working.get(name))
            states = self.trace.run_states(self.run_id)
            return (
                all(rival.is_over for rival in self._rivals.values())
                and len(self._rivals) == len(ways)
                and all(states.get(name) in FINISHED for name in ways if name != "live_dags_test")
            )

        self.host.processes.wait_for("every path has come to its end", over, seconds=seconds)
        return {name: self._seen(name) for name in ways}

    def _step(self, name: str, way: Way, working: dict[str, Any] | None) -> None:
        if (rival := self._rivals.get(name)) is not None:
            rival.step()
            if name not in self._acted:
                self._acted.add(name)
                if way.act is not None:
                    way.act(self.host, name, (working or {}) | {"run_id": self.run_id})
        elif working is not None:
            self._rivals[name] = Rival(self.engine, name)

    def _seen(self, name: str) -> Seen:
        rival = self._rivals[name].interval
        work: list[Interval] = [(one["began"], one["ended"]) for one in self.read() if one["name"] == name]
        before = [interval for interval in work if interval[0] < rival[0]]
        run_id = self.run_id
        states = self.trace.states(run_id, name)
        holder = [state for state in states if state.task_id == "holder" and state.state is not None]
        return Seen(
            states=worded(states, "holder"),
            final=holder[-1].state or "" if holder else "",
            attempts=max((state.try_number for state in holder), default=0),
            before=len(before),
            free_seconds=rival[0] - max(ended for _, ended in before),
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
    for pool in LIMITS["pools"]["limits"]:
        started_host.create_pool(pool, 16)
    seen = []
    for number in range(TIMES):
        began = time.monotonic()
        one = Round(started_host, engine, trace, intervals_folder, number)
        try:
            seen.append(one.play(WAYS, seconds=150))
        except Exception:
            print({name: worded(trace.states(one.run_id, name), "holder") for name in WAYS})
            print(one.read())
            print(started_host.logs())
            raise
        print(f"round {number}: {time.monotonic() - began:.0f} s")
        print(*(f"{k}: {v}" for k, v in seen[-1].items()), sep="\n")
    return seen


@pytest.mark.parametrize("name", WAYS)
def test_a_path(name: str, rounds: list[dict[str, Seen]]) -> None:
    way = WAYS[name]
    for seen in (one[name] for one in rounds):
        assert seen.most == 1, "two holders at once"
        assert (seen.final, seen.attempts) == (way.final, way.attempts)
        assert seen.before == way.before
        assert seen.free_seconds < way.free_seconds
