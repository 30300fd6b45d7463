"""Every path by which a run's slot comes back, on a real server: most at once, each in a pool with room for one.

A plain process stands behind each run and says when the slot was free. `PENSTOCK_TEST_TIMES=10` does it all ten times.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import penstock
import pytest
from intervals import most_at_once
from penstock import changes
from penstock.config import Concurrency
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.store.contract import Event
from prefect_deployed import Runs, wait_for_expiry
from rival import Rival
from tables import table

pytestmark = pytest.mark.timeout(900)
TIMES = int(os.environ.get("PENSTOCK_TEST_TIMES", "1"))
TTL_SECONDS, GRACE_SECONDS = 5.0, 3.0
EXPIRED = TTL_SECONDS + GRACE_SECONDS + 4.0  # the sweep, and a machine that is busy
ENDED = 30.0  # its process ends: seconds, but where a dozen others start beside it
TOLD = 5.0  # the gate gives the slot back
Act = Callable[["Round", str, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """`before` counts the run's intervals of work before its slot is free, `free_seconds` bounds how long that takes
    from the end of the last of them; `after` counts those that come later. `here`: in a process without a worker, and
    there `ttl_seconds` may be another.
    """

    done: str
    flow: str
    final: str
    runs: int = 1
    before: int = 1
    after: int = 0
    free_seconds: float = ENDED
    act: Act | None = None
    here: bool = False
    pool_of_flow: bool = True
    seconds: float | None = None
    ttl_seconds: float = TTL_SECONDS


def send(number: signal.Signals) -> Act:
    return lambda one, label, working: os.kill(working["pid"], number)


def cancel(one: Round, label: str, working: dict[str, Any]) -> None:
    one.runs.host.set_state(one.run_id(label), "CANCELLING")


def cancel_and_end(one: Round, label: str, working: dict[str, Any]) -> None:
    cancel(one, label, working)
    one.runs.tell_to_end(label)


WAYS = {
    "live_completed": Way(done="returns", flow="plain", final="Completed"),
    "live_failed": Way(done="raises", flow="failing", final="Failed"),
    "live_retry": Way(
        done="raises, then returns (worker: holds on)", flow="retrying", final="Completed", runs=2, before=2
    ),
    "live_cancelled": Way(done="cancelled by the API", flow="plain", final="Cancelled", seconds=90, act=cancel),
    "live_sigterm": Way(
        done="SIGTERM to its process", flow="plain", final="Crashed", seconds=90, act=send(signal.SIGTERM)
    ),
    "live_sigkill": Way(
        done="SIGKILL to its process",
        flow="plain",
        final="Crashed",
        seconds=90,
        free_seconds=EXPIRED,
        act=send(signal.SIGKILL),
    ),
    "live_blocked_loop": Way(
        done="its event loop stands still for 2 TTL", flow="blocking", final="Completed", seconds=10
    ),
    "live_paused": Way(done="pauses, is resumed: slot held", flow="pausing", final="Completed", runs=2, before=2),
    "live_paused_released": Way(
        done="pauses under released(), is resumed", flow="pausing_released", final="Completed", runs=2, after=1
    ),
    "live_here_paused_released": Way(
        done="no worker: the same", flow="pausing_released", final="Completed", runs=2, after=1, here=True
    ),
    "live_suspended": Way(done="suspends, is resumed: slot released", flow="suspending", final="Completed", after=1),
    "live_suspended_held": Way(
        done="the same under hold_while_suspended", flow="suspending", final="Completed", before=2
    ),
    "live_suspended_cancelled": Way(
        done="is held while suspended, and cancelled", flow="suspending", final="Cancelled", free_seconds=60.0
    ),
    "live_rescheduled": Way(
        done="SIGKILL, then scheduled again",
        flow="plain",
        final="Completed",
        runs=2,
        after=1,
        seconds=90,
        act=send(signal.SIGKILL),
    ),
    "live_here_completed": Way(
        done="no worker: returns", flow="plain", final="Completed", free_seconds=TOLD, here=True
    ),
    "live_here_retry": Way(
        done="no worker: raises, then returns",
        flow="retrying",
        final="Completed",
        runs=2,
        after=1,
        free_seconds=TOLD,
        here=True,
    ),
    "live_here_sigterm": Way(
        done="no worker: SIGTERM",
        flow="forever",
        final="Crashed",
        free_seconds=TOLD,
        here=True,
        act=send(signal.SIGTERM),
    ),
    "live_here_cancelled": Way(
        done="no worker: cancelled by the API, works to its end",
        flow="forever",
        final="Cancelling",  # so Prefect leaves what no runner of its own has cancelled
        free_seconds=TOLD,
        here=True,
        act=cancel_and_end,
    ),
    "live_served_sigkill": Way(
        done="serve(): SIGKILL to the run's process",
        flow="served",
        final="Crashed",
        here=True,
        pool_of_flow=False,
        ttl_seconds=600.0,  # the hooks of the flow free it long before
        act=send(signal.SIGKILL),
    ),
    "live_here_sigkill": Way(
        done="no worker: SIGKILL",
        flow="forever",
        final="Running",
        free_seconds=EXPIRED,
        here=True,
        act=send(signal.SIGKILL),
    ),
    "live_task_retry": Way(
        done="a task raises, then returns",
        flow="with_retried_task",
        final="Completed",
        after=1,
        free_seconds=10.0,  # well before its delay of 15 s is over; a score of others begin at the same time
        here=True,
        pool_of_flow=False,
    ),
}
RELEASED = ("live_suspended", "live_paused_released", "live_here_paused_released")
KILLED = {
    "live_worker_killed": Way(done="SIGKILL to its worker", flow="plain", final="Completed", seconds=90),
    "live_server_restarted": Way(
        done="the server is killed and started again", flow="plain", final="Completed", seconds=240
    ),
}


@dataclass(frozen=True)
class Seen:
    states: str
    final: str
    runs: int
    before: int
    after: int
    free_seconds: float
    most: int

    def row(self, way: Way) -> tuple[str, ...]:
        """As the table has it."""
        overlap = "no" if self.most <= 1 else "YES"
        return way.done, self.states, str(self.runs), f"{self.free_seconds:.1f}", overlap


class Round:
    """All paths once. Stepped in one thread: what each has to do next is done as soon as it can be."""

    def __init__(self, runs: Runs, engine: Engine) -> None:
        self.runs, self.engine = runs, engine
        self._ids: dict[str, str] = {}
        self._rivals: dict[str, Rival] = {}
        self._resumed: set[str] = set()

    def play(self, *, seconds: float) -> dict[str, Seen]:
        """Start them all, act on them, see them end; then what befalls a worker and the server."""
        for name, way in WAYS.items():
            if way.here:
                ttl = {"PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS": f"{way.ttl_seconds:g}"}
                self.runs.start_here(way.flow, name, name if way.pool_of_flow else "", settings=ttl)
            else:
                self._start(name, way, "lively")
        self._run_served("live_served_sigkill", seconds=seconds)
        self._until_over(WAYS, seconds=seconds)
        for name, way in KILLED.items():
            self._start(name, way, "mortal" if "worker" in name else "lively")
        self.runs.host.wait_for("both work", lambda: all(map(self.runs.has_begun, KILLED)), seconds=seconds)
        for name, way in KILLED.items():
            self._step(name, way)
        wait_for_expiry(self.engine, self.runs.host, self.runs.host.kill_worker("mortal"))
        self._end("live_worker_killed", seconds=seconds)
        self.runs.host.restart_server(kill=True, seconds=seconds)
        self._end("live_server_restarted", seconds=seconds)
        return {name: self._seen(name) for name in [*WAYS, *KILLED]}

    def _end(self, name: str, *, seconds: float) -> None:
        """What has befallen others, this run has come through: its slot is free when it ends by itself."""
        self._rivals[name].step()
        assert not self._rivals[name].has_it
        self.runs.tell_to_end(name)
        self._until_over({name: KILLED[name]}, seconds=seconds)

    def run_id(self, label: str) -> str:
        """Of the run of that path, as soon as the server has it."""
        if label not in self._ids:
            (run,) = self.runs.host.flow_runs(label)
            self._ids[label] = run["id"]
        return self._ids[label]

    def _start(self, name: str, way: Way, pool: str) -> None:
        more = {} if way.seconds is None else {"seconds": way.seconds}
        self._ids[name] = self.runs.start(way.flow, name, pool, parameters=more, penstock={"pools": [name]})

    def _run_served(self, name: str, *, seconds: float) -> None:
        host = self.runs.host
        host.wait_for("it is served", lambda: bool(host.deployments(name)), seconds=seconds)
        self._ids[name] = host.run_deployment(host.deployments(name)[0]["id"])

    def _until_over(self, ways: Mapping[str, Way], *, seconds: float) -> None:
        def over() -> bool:
            for name, way in ways.items():
                self._step(name, way)
            return all(self._is_over(name, way) for name, way in ways.items())

        def so_far() -> str:
            return "\n".join(f"{name}: {self._so_far(name)}" for name in ways)

        deadline = time.monotonic() + seconds
        while not over():
            assert time.monotonic() < deadline, so_far()
            time.sleep(0.2)

    def _so_far(self, name: str) -> str:
        return (
            f"{self.runs.names(self.run_id(name))}, rival over: {name in self._rivals and self._rivals[name].is_over}"
        )

    def _is_over(self, name: str, way: Way) -> bool:
        if name not in self._rivals or not self._rivals[name].is_over:
            return False
        return self.runs.state(self.run_id(name)) == way.final

    def _step(self, name: str, way: Way) -> None:
        if (rival := self._rivals.get(name)) is not None:
            rival.step()
            self._go_on(name, rival)
        elif self.runs.has_begun(name):
            rival = self._rivals[name] = Rival(self.engine, name)
            rival.step()
            if way.act is not None:
                way.act(self, name, self.runs.works(name)[0])

    def _go_on(self, name: str, rival: Rival) -> None:
        """Resume what pauses: the one while its slot is held, the other when it has come back."""
        if name in self._resumed:
            return
        if (name == "live_paused" and self._is_paused(name)) or (
            name == "live_suspended_held" and self._is_paused(name) and not self._has_process(name)
        ):
            assert not rival.has_it
            self.runs.host.resume(self.run_id(name))
        elif name in RELEASED and rival.is_over and self._is_paused(name):
            self.runs.host.resume(self.run_id(name))
        elif name == "live_suspended_cancelled" and self._is_paused(name) and not self._has_process(name):
            assert not rival.has_it
            cancel(self, name, {})
        elif name == "live_rescheduled" and rival.is_over and self.runs.state(self.run_id(name)) == "Crashed":
            self.runs.tell_to_end(name)
            self.runs.host.set_state(self.run_id(name), "SCHEDULED")
        else:
            return
        self._resumed.add(name)

    def _is_paused(self, name: str) -> bool:
        return self.runs.state(self.run_id(name)) in ("Paused", "Suspended")

    def _has_process(self, name: str) -> bool:
        """Whether one keeps what the run holds."""
        rows = [row for row in self.engine.snapshot().claims if row.claim.run_id == self.run_id(name)]
        return any(row.session_ids for row in rows)

    def _seen(self, name: str) -> Seen:
        rival = self._rivals[name].interval
        work = self.runs.intervals(name)
        run = self.runs.host.flow_run(self.run_id(name))
        before = [one for one in work if one[0] < rival[0]]
        return Seen(
            states=" ".join(self.runs.names(run["id"])),
            final=run["state"]["name"],
            runs=run["run_count"],
            before=len(before),
            after=len(work) - len(before),
            free_seconds=self._granted_at(name) - max(ended for _, ended in before) if before else 0.0,
            most=most_at_once([*work, rival]),
        )

    def _granted_at(self, name: str) -> float:
        """When the store gave the slot to the rival, by the machine's monotonic clock: the rival is looked at later."""
        claim_id, offset = self._rivals[name].claim_id, time.time() - time.monotonic()
        rows = [row for row in self.engine.store.history() if row.claim_id == claim_id and row.event is Event.GRANTED]
        return min(row.at for row in rows) / 1e6 - offset


@pytest.fixture(scope="module")
def engine(database_host: PrefectHost) -> Iterator[Engine]:
    with penstock.connect(database_host.store_url) as engine:
        version, _ = engine.configuration(fresh=True)
        limits = {"pools": {"limits": dict.fromkeys([*WAYS, *KILLED], 1)}}
        changes.apply(engine, Concurrency.model_validate(limits), expected_version=version)
        yield engine


@pytest.fixture(scope="module")
def rounds(
    database_host: PrefectHost, engine: Engine, tmp_path_factory: pytest.TempPathFactory, tables: list[str]
) -> list[dict[str, Seen]]:
    """What was seen of each path, as many times as were asked for."""
    database_host.create_work_pool("lively", "penstock-process")
    database_host.create_work_pool("mortal", "penstock-process")
    rounds = []
    for number in range(TIMES):
        database_host.start_worker("lively", "lively")
        database_host.start_worker("mortal", "mortal")
        began = time.monotonic()
        one = Round(Runs(database_host, tmp_path_factory.mktemp(f"round_{number}")), engine)
        rounds.append(one.play(seconds=400))
        database_host.kill_worker("lively")
        rows = [seen.row((WAYS | KILLED)[name]) for name, seen in rounds[-1].items()]
        heads = ("what happens to the run", "states", "run_count", "free after s", "overlap")
        took = time.monotonic() - began
        tables.append(table(f"Prefect, TTL 5 s: round {number + 1} of {TIMES}, {took:.0f} s", heads, rows))
    return rounds


@pytest.mark.parametrize("name", [*WAYS, *KILLED])
def test_the_slot_comes_back_and_never_has_two_holders(name: str, rounds: list[dict[str, Seen]]) -> None:
    way = (WAYS | KILLED)[name]
    for seen in (one[name] for one in rounds):
        assert seen.most == 1
        assert (seen.final, seen.runs) == (way.final, way.runs)
        assert (seen.before, seen.after) == (way.before, way.after)
        assert seen.free_seconds < way.free_seconds
