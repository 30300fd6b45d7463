"""What befalls the hosts of the soak, and when."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from own_servers import OwnPostgresql
from penstock.demo.airflow_host import AirflowHost
from penstock.demo.prefect_host import PrefectHost

from soak.load import WORK_POOL, CommandFeed, PrefectFeed, patiently
from soak.witness import Witness

TASK, FLOW, COMMAND, RUN = "Airflow task", "Prefect flow run", "command", "`penstock run`"
WORKER, TRIGGERER, DATABASE = "Prefect worker", "Airflow triggerer", "PostgreSQL of the store"
KINDS = (TASK, FLOW, COMMAND, RUN, WORKER, TRIGGERER, DATABASE)
WORKERS = ("worker-1", "worker-2")
PATIENCE_SECONDS = 180.0
"""So long may it take on a busy machine until something is there again."""
SETTLED_SECONDS = 1.0
"""So long a holder has held before it is killed: in the middle of its work."""
ORDER = (TASK, FLOW, WORKER, RUN, TRIGGERER, COMMAND, TASK, FLOW, TASK, RUN, TASK, COMMAND)
"""One after the other, again and again; each kind soon."""


@dataclass(frozen=True)
class Fault:
    """One that was done: `at` by the machine's monotonic clock; `how` is the signal, or the way of a restart."""

    kind: str
    at: float
    how: str = "kill -9"
    seconds: float | None = None
    """How long what was ended was away."""


class Faults(threading.Thread):
    """Does one after the other in its own thread, each `pause_seconds` after the one before; restarts what it ends.

    `restarts` are the ways in which the store's database is restarted, spread over `seconds`; one is in the middle.
    """

    def __init__(
        self,
        witness: Witness,
        airflow: AirflowHost,
        prefect: PrefectHost,
        flow_runs: PrefectFeed,
        commands: CommandFeed,
        database: OwnPostgresql,
        *,
        seconds: float,
        pause_seconds: float,
        restarts: tuple[str, ...],
    ) -> None:
        super().__init__(daemon=True, name="faults")
        self.done = list[Fault]()
        self.error: BaseException | None = None
        self._witness, self._airflow, self._prefect = witness, airflow, prefect
        self._flow_runs, self._commands, self._database = flow_runs, commands, database
        self._seconds, self._pause, self._restarts = seconds, pause_seconds, restarts
        self._random = random.Random(7)
        self._workers = list(WORKERS)

    def run(self) -> None:
        try:
            self._play(time.monotonic())
        except BaseException as error:  # the test raises it
            self.error = error

    def _play(self, began: float) -> None:
        share = self._seconds / (len(self._restarts) + 1)
        restarts = [(began + share * (number + 1), how) for number, how in enumerate(self._restarts)]
        acts: dict[str, Callable[[], bool]] = {
            TASK: lambda: self._kill_holder(TASK, "airflow"),
            FLOW: lambda: self._kill_holder(FLOW, "prefect"),
            COMMAND: lambda: self._kill_holder(COMMAND, "penstock run"),
            RUN: self._kill_penstock_run,
            WORKER: self._kill_worker,
            TRIGGERER: self._kill_triggerer,
        }
        number, next_at = 0, began + self._pause
        while (now := time.monotonic()) < began + self._seconds:
            if restarts and now >= restarts[0][0]:
                self._restart_database(restarts.pop(0)[1])
            elif now >= next_at and acts[ORDER[number % len(ORDER)]]():
                number, next_at = number + 1, time.monotonic() + self._pause
            time.sleep(0.05)

    def _kill_holder(self, kind: str, host: str) -> bool:
        """Kill -9 of a process that has held for a moment; False if there is none yet."""
        settled = [hold for hold in self._witness.living(host) if time.monotonic() - hold.began > SETTLED_SECONDS]
        if not settled:
            return False
        if (killed_at := self._witness.kill(self._random.choice(settled))) is None:
            return False
        self.done.append(Fault(kind, killed_at))
        return True

    def _kill_penstock_run(self) -> bool:
        """Of one that holds or waits; its command dies with it."""
        if not (running := self._commands.running()):
            return False
        self._random.choice(running).kill()
        self.done.append(Fault(RUN, time.monotonic()))
        return True

    def _kill_worker(self) -> bool:
        """What it had started lives on; another one is started in its place."""
        name = self._workers.pop(0)
        self._prefect.kill_worker(name)
        at = self._flow_runs.worker_killed_at = time.monotonic()
        self._prefect.start_worker(name, WORK_POOL, seconds=PATIENCE_SECONDS)
        self._workers.append(name)
        self.done.append(Fault(WORKER, at, seconds=time.monotonic() - at))
        return True

    def _kill_triggerer(self) -> bool:
        self._airflow.processes.kill("triggerer")
        at, killed_at = time.monotonic(), datetime.now(UTC)
        self._airflow.start_component("triggerer")

        def is_heard() -> bool:
            heard = patiently(self._airflow.health)["triggerer"]["latest_triggerer_heartbeat"]
            return heard is not None and datetime.fromisoformat(heard) > killed_at

        self._airflow.processes.wait_for("the triggerer is there again", is_heard, seconds=PATIENCE_SECONDS)
        self.done.append(Fault(TRIGGERER, at, seconds=time.monotonic() - at))
        return True

    def _restart_database(self, how: str) -> None:
        at = time.monotonic()
        self._database.stop(OwnPostgresql.ways[how])
        self._database.start()
        self.done.append(Fault(DATABASE, at, how, seconds=time.monotonic() - at))
