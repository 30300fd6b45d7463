"""The demo: a real Airflow and a real Prefect, in two environments, share the limits of one dagster.yaml block."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from penstock import changes
from penstock.config import PoolLimit
from penstock.config_file import read
from penstock.connection import connect
from penstock.demo import picture
from penstock.demo.airflow_host import AirflowHost
from penstock.demo.environments import build_wheel, make_environment
from penstock.demo.prefect_host import PrefectHost
from penstock.demo.processes import HostFailed
from penstock.engine import Engine
from penstock.settings import home

BLOCK = """\
concurrency:
  pools:
    default_limit: 1
  runs:
    max_concurrent_runs: 2
    tag_concurrency_limits:
      - {key: team, value: analytics, limit: 1}
"""
DAG_ID = "penstock_demo"
WORK_SECONDS = 240.0
CAPACITIES: dict[str, int | None] = {"pool:database": 2, "pool:api": 1, "runs": 2, "run_tag:team=analytics": 1}
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the demo showed: per limit, and what is wrong with it (empty when all is well)."""

    stories: dict[str, picture.LimitStory]
    faults: tuple[str, ...]


class Demo:
    """One performance. Everything that it starts has a time limit and is gone when `perform` returns."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._part_began = time.monotonic()
        self._errors: list[BaseException] = []

    def _say(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/]  {text}", highlight=False)

    def _part_done(self, name: str) -> None:
        now = time.monotonic()
        self._say(f"{name}: {now - self._part_began:.1f} s")
        self._part_began = now

    def perform(self) -> Verdict:
        """Play it. Raises HostFailed with the logs of what failed."""
        environments = home() / "demo"
        self._say("building the wheel of this Penstock")
        wheel = build_wheel(environments / "wheel")
        bins = {host: make_environment(host, environments, wheel, self._say) for host in ("airflow", "prefect")}
        self._part_done("the two environments")
        with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder, ExitStack() as stack:
            work = Path(folder)
            url = f"sqlite:///{work / 'penstock.db'}"
            engine = stack.enter_context(connect(url, deployment="penstock-demo"))
            self._configure(engine)
            intervals = work / "intervals"
            intervals.touch()
            airflow, prefect = self._start_hosts(stack, bins, work, url, intervals)
            self._part_done("starting Airflow and Prefect")
            self._run_both(engine, airflow, prefect)
            self._part_done("two DAG runs and two flow runs")
            stories = picture.tell(engine.store.history(), CAPACITIES)
            return Verdict(stories, tuple(faults(stories, intervals)))

    def _configure(self, engine: Engine) -> None:
        self._console.print("\n[bold]penstock apply[/] this block, as it would stand in a dagster.yaml:\n")
        self._console.print(BLOCK, highlight=False, markup=False)
        self._console.print("[bold]penstock pools set database 2[/]\n", highlight=False)
        changes.apply(engine, read(BLOCK).concurrency, expected_version=0)
        changes.set_pool(engine, "database", PoolLimit(limit=2))

    def _start_hosts(
        self, stack: ExitStack, bins: dict[str, Path], work: Path, url: str, intervals: Path
    ) -> tuple[AirflowHost, PrefectHost]:
        shared = {"PENSTOCK_DEMO_INTERVALS": str(intervals)}
        settings = {
            "AIRFLOW__PENSTOCK__POOLS": "api",  # `database` has a limit of its own in the store, that counts anyway
            "AIRFLOW__PENSTOCK__RUN_TAG_KEYS": "team",
        }
        airflow = AirflowHost(
            bins["airflow"],
            work / "airflow",
            HERE / "dags",
            store_url=url,
            deployment="demo-airflow",
            environment=shared | settings,
        )
        prefect = PrefectHost(bins["prefect"], work / "prefect", url, "demo-prefect", settings=shared)
        stack.callback(prefect.stop)
        stack.callback(airflow.stop)
        self._say("starting a real Airflow and a real Prefect server side by side")
        prefect_starts = threading.Thread(target=self._guarded, args=(prefect.start,))
        prefect_starts.start()
        try:
            airflow.start([DAG_ID])
            for pool in ("database", "api"):
                airflow.create_pool(pool, 32)  # Airflow's own pools stay wide: it is Penstock that limits
        finally:
            prefect_starts.join()
        self._raise_errors()
        return airflow, prefect

    def _run_both(self, engine: Engine, airflow: AirflowHost, prefect: PrefectHost) -> None:
        airflow_runs_now = threading.Event()

        def airflow_runs() -> None:
            airflow.trigger(DAG_ID, "first", {"team": "analytics"})
            airflow_runs_now.wait(WORK_SECONDS)
            airflow.trigger(DAG_ID, "second")
            states = airflow.wait_for_runs(DAG_ID, ["first", "second"], seconds=WORK_SECONDS)
            if set(states.values()) != {"success"}:
                raise HostFailed(f"DAG runs ended as {states}\n{airflow.logs(DAG_ID)}")

        def prefect_runs() -> None:
            # Prefect is there at once, Airflow some seconds later: begin together, or one is done before the other.
            airflow_runs_now.wait(WORK_SECONDS)
            script = HERE / "flows" / "penstock_demo.py"
            flows = [
                prefect.run_flow("first", script, "first", "team:analytics"),
                prefect.run_flow("second", script, "second"),
            ]
            codes = prefect.wait_for_flows(*flows, seconds=WORK_SECONDS)
            if any(codes):
                raise HostFailed(f"flow runs ended with {codes}\n{prefect.logs()}")

        threads = [threading.Thread(target=self._guarded, args=(run,)) for run in (airflow_runs, prefect_runs)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        try:
            self._draw(engine, began, threads, airflow_runs_now)
        finally:
            airflow_runs_now.set()
        self._raise_errors()

    def _draw(
        self, engine: Engine, began: float, threads: list[threading.Thread], airflow_runs_now: threading.Event
    ) -> None:
        live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        last = ""
        with live or ExitStack():
            while any(thread.is_alive() for thread in threads):
                status = engine.status()
                if any(lease["host"] == "airflow" for lease in status["leases"]) or self._errors:
                    airflow_runs_now.set()
                if live is not None:
                    live.update(Group(picture.live_table(status, time.monotonic() - began)), refresh=True)
                elif (now := picture.line(status)) != last and status["leases"]:
                    self._say(now)
                    last = now
                threads[0].join(0.3 if live is not None else 1.0)

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # raised again by the main thread
            self._errors.append(error)

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]


def faults(stories: dict[str, picture.LimitStory], intervals: Path) -> list[str]:
    """What the demo promised and did not show."""
    found = []
    for key, capacity in CAPACITIES.items():
        story = stories[key]
        if story.most_held > (capacity or 0):
            found.append(f"{key}: {story.most_held} held, more than {capacity}")
        if story.most_held < (capacity or 0):
            found.append(f"{key}: at most {story.most_held} held, the limit of {capacity} was not reached")
        if not (story.grants["airflow"] and story.grants["prefect"]):
            found.append(f"{key}: only one host took part")
    # The tasks' own clocks, beside the store's word for it.
    for key, inside in _most_inside(intervals).items():
        if inside > (CAPACITIES[key] or 0):
            found.append(f"{key}: {inside} tasks inside at once, more than {CAPACITIES[key]}")
    return found


def _most_inside(intervals: Path) -> dict[str, int]:
    steps: dict[str, list[tuple[float, int]]] = {}
    for each in intervals.read_text().splitlines():
        key, begun, ended = each.split()
        steps.setdefault(key, []).extend([(float(begun), 1), (float(ended), -1)])
    most = {}
    for key, changes_ in steps.items():
        inside = most[key] = 0
        for _, change in sorted(changes_):
            inside += change
            most[key] = max(most[key], inside)
    return most
