"""The work of the soak: DAG runs, flow runs and commands, so many of each at a time until the time is over."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from penstock.demo.airflow_host import FINISHED, AirflowHost
from penstock.demo.prefect_host import PrefectHost
from penstock.demo.processes import HostFailed

from soak.holders.holding import run_slots
from soak.witness import Witness

CUSTOMERS = ("acme", "birch")
"""In turn."""
DAG_ID, DEPLOYMENT, WORK_POOL = "airflow_orders", "prefect_orders", "limited"
DAG_RUNS, FLOW_RUNS, COMMANDS = 3, 3, 3
"""At a time."""
UNHEARD_SECONDS, FORSAKEN_SECONDS = 45.0, 180.0
"""So long after the death of its process or of a worker nobody goes on with a flow run; so long if nobody has died."""
CRASHED_SECONDS = 25.0
"""So long it has been Crashed before it is scheduled again: Prefect's runner and its worker both report a crash, the
worker when the process for its hooks has ended.
"""
COMMAND_SECONDS = 2.0
TRIES = 30
BUSY_SECONDS = 180.0

T = TypeVar("T")


@dataclass
class Unit:
    """A DAG run, flow run or command: the steps that must be done, how it ended, how often one was tried again."""

    host: str
    run: str
    steps: tuple[str, ...]
    state: str = "begun"
    retries: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether it ended as it would without faults."""
        return self.state in ("success", "COMPLETED", "exit 0")


class Feed(threading.Thread, ABC):
    """Keeps one host busy. `over` ends the feeding; what was begun is seen to its end. An error ends it at once."""

    host: str

    def __init__(self, over: threading.Event) -> None:
        super().__init__(daemon=True, name=self.host)
        self.over, self.units = over, list[Unit]()
        self.error: BaseException | None = None
        self._names = (f"{self.host.split()[0]}-{number}" for number in itertools.count(1))
        self._customers: Iterator[str] = itertools.cycle(CUSTOMERS)
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            self.feed()
        except BaseException as error:  # the test raises it
            self.error = error

    @abstractmethod
    def feed(self) -> None:
        """Begin and see to their ends so many at a time."""

    def begin(self, steps: Sequence[str]) -> tuple[Unit, str]:
        """The next one, and its customer."""
        with self._lock:
            unit = Unit(self.host, next(self._names), tuple(steps))
            self.units.append(unit)
            return unit, next(self._customers)


class AirflowFeed(Feed):
    """DAG runs. What is killed Airflow tries again by itself: `retries`."""

    host = "airflow"
    steps = ("extract[0]", "extract[1]", "convert", "publish")

    def __init__(self, over: threading.Event, airflow: AirflowHost) -> None:
        super().__init__(over)
        self._airflow = airflow

    def feed(self) -> None:
        running: list[Unit] = []
        while running or not self.over.is_set():
            while len(running) < DAG_RUNS and not self.over.is_set():
                unit, customer = self.begin(self.steps)
                self._begin_run(unit.run, customer)
                running.append(unit)
            states = patiently(lambda: self._airflow.run_states(DAG_ID))
            for unit in running:
                unit.state = states[unit.run]
            running = [unit for unit in running if unit.state not in FINISHED]
            time.sleep(1.5)

    def _begin_run(self, run_id: str, customer: str) -> None:
        try:
            self._airflow.trigger(DAG_ID, run_id, {"customer": customer})
        except HostFailed:  # no answer; it may have been heard all the same
            if run_id not in patiently(lambda: self._airflow.run_states(DAG_ID)):
                patiently(lambda: self._airflow.trigger(DAG_ID, run_id, {"customer": customer}))

    def count_retries(self) -> None:
        """Of every run; a run whose tasks did not all succeed is not a success."""
        for unit in self.units:
            tasks = patiently(partial(self._airflow.task_instances, DAG_ID, unit.run))
            unit.retries = sum(max(0, task["try_number"] - 1) for task in tasks)
            unit.notes = [f"{task['task_id']}: {task['state']}" for task in tasks if task["state"] != "success"]
            if unit.notes or len(tasks) != len(self.steps):
                unit.state = f"{unit.state} with {unit.notes}, {len(tasks)} tasks"


class PrefectFeed(Feed):
    """Runs of a deployment. Prefect itself leaves a run that has crashed as it is: it is scheduled again here, as an
    automation of Prefect's would, and so is one that has neither a process nor a worker any more.
    """

    host = "prefect"
    steps = ("flow", "extract[0]", "extract[1]", "publish", "convert")

    def __init__(self, over: threading.Event, prefect: PrefectHost, deployment: str, witness: Witness) -> None:
        super().__init__(over)
        self._prefect, self._deployment, self._witness = prefect, deployment, witness
        self.worker_killed_at: float | None = None

    def feed(self) -> None:
        running: dict[str, Unit] = {}
        stood: dict[str, tuple[str, float]] = {}
        while running or not self.over.is_set():
            while len(running) < FLOW_RUNS and not self.over.is_set():
                unit, customer = self.begin(self.steps)
                parameters = {"run": unit.run, "customer": customer}
                tags = [f"customer:{customer}"]
                options = {"name": unit.run, "parameters": parameters, "tags": tags, "idempotency_key": unit.run}
                run_id = patiently(partial(self._prefect.run_deployment, self._deployment, **options))
                running[run_id] = unit
            for run_id, unit in list(running.items()):
                state = patiently(partial(self._prefect.flow_run, run_id))["state"]
                unit.state = state["type"]
                if stood.get(run_id, ("",))[0] != state["id"]:
                    stood[run_id] = state["id"], time.monotonic()
                if unit.state in ("COMPLETED", "FAILED", "CANCELLED"):
                    del running[run_id]
                else:
                    self._schedule_again(run_id, unit, stood[run_id][1])
            time.sleep(1.5)

    def _schedule_again(self, run_id: str, unit: Unit, since: float) -> None:
        if unit.state == "CRASHED":
            if time.monotonic() < since + CRASHED_SECONDS:
                return
        else:
            if not self._is_forsaken(unit, since):
                return
            unit.notes.append(f"{unit.state} and forsaken")
            patiently(partial(self._prefect.set_state, run_id, "CRASHED", message="nobody has heard of it"))
        patiently(partial(self._prefect.set_state, run_id, "SCHEDULED"))
        unit.retries += 1

    def _is_forsaken(self, unit: Unit, since: float) -> bool:
        """Whether nobody is left who would go on with it: not its process, and not the worker that would have told."""
        if unit.state not in ("PENDING", "RUNNING") or self._witness.has_process(unit.run):
            return False
        death = self._witness.last_death(unit.run) or 0.0
        worker_killed = self.worker_killed_at or 0.0
        unheard = time.monotonic() - max(since, death, worker_killed)
        told = death > since if unit.state == "RUNNING" else worker_killed > since
        return unheard > (UNHEARD_SECONDS if told else FORSAKEN_SECONDS)


class CommandFeed(Feed):
    """Commands under `penstock run`; one that fails is begun again, as cron jobs and units of systemd are."""

    host = "penstock run"
    ways = (
        ("warehouse",),
        ("api", "licence"),
        ("warehouse:2",),
        ("api",),
    )

    def __init__(self, over: threading.Event, store_url: str, environment: dict[str, str], folder: Path) -> None:
        super().__init__(over)
        self._url, self._environment, self._folder = store_url, os.environ | environment, folder
        self._ways = itertools.cycle(self.ways)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped = threading.Event()

    def feed(self) -> None:
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                while not self.over.is_set():
                    self._see_through(*self.begin(("command",)))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=guarded, daemon=True) for _ in range(COMMANDS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            raise error

    def stop(self) -> None:
        """Kill what is left of them, after a failure."""
        self.over.set()
        self._stopped.set()
        for child in self.running():
            child.kill()

    def running(self) -> list[subprocess.Popen[bytes]]:
        """The processes of `penstock run`, those that wait too."""
        with self._lock:
            return [child for child in self._children.values() if child.poll() is None]

    def log(self) -> Path:
        """What all of them wrote."""
        return self._folder / "commands.log"

    def _see_through(self, unit: Unit, customer: str) -> None:
        with self._lock:
            pools = next(self._ways)
        command = self._command(unit, customer, pools)
        for _ in range(TRIES):
            with self.log().open("ab") as log:
                child = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)
            with self._lock:
                self._children[unit.run] = child
            if (code := child.wait()) == 0 or self._stopped.is_set():
                break
            unit.notes.append(f"exit {code}")
            unit.retries += 1
        unit.state = f"exit {code}"

    def _command(self, unit: Unit, customer: str, pools: Sequence[str]) -> list[str]:
        slots = {f"pool:{name}": int(count or 1) for name, _, count in (pool.partition(":") for pool in pools)}
        command = [sys.executable, "-m", "penstock", "--store", self._url, "run"]
        for pool in pools:
            command += ["--pool", pool]
        if len(pools) > 1:  # the others are ops without a run
            command += ["--run-id", unit.run, "--run-tag", f"customer={customer}"]
            slots |= run_slots(customer)
        script = str(Path(__file__).parent / "holders" / "holding.py")
        work = [sys.executable, "-S", script, "command", unit.run, str(COMMAND_SECONDS), json.dumps(slots)]
        return [*command, "--", *work]


def patiently(call: Callable[[], T]) -> T:
    """What a host answers, asked again for as long as it is too busy to."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return call()
        except HostFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def all_over(feeds: Sequence[Feed], seconds: float, raise_if: Callable[[], None]) -> bool:
    """Wait until all that was begun is over."""
    deadline = time.monotonic() + seconds
    while any(feed.is_alive() for feed in feeds):
        raise_if()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    raise_if()
    return True
