"""What Airflow is asked about itself: connections, runs, the triggerer. Nothing loads before its use."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock_airflow import compatibility

DEFAULT_API_URL = "http://localhost:8080"
ANSWER_SECONDS = 30.0
HEALTH_SECONDS = 3.0
UNASSIGNED_SECONDS = 60.0
_loops: list[asyncio.AbstractEventLoop] = []  # of the triggerer, if this process is one


def connection(conn_id: str) -> Any:
    """Airflow's connection of that id. Raises what `not_found` names when there is none, or whatever Airflow raises.

    In task processes, the dag-processor's children and the triggerer the SDK asks the execution API; the API server,
    the scheduler and the command line read Airflow's database, which only the older door still does.
    """
    if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
        from airflow.sdk import Connection  # noqa: PLC0415

        return _answered(Connection.async_get(conn_id)) if _loops else Connection.get(conn_id)
    from airflow.models.connection import Connection as StoredConnection  # noqa: PLC0415

    return StoredConnection.get_connection_from_secrets(conn_id)


def not_found() -> type[Exception]:
    """What Airflow raises where there is no such thing."""
    from airflow.exceptions import AirflowNotFoundException  # noqa: PLC0415

    found: type[Exception] = AirflowNotFoundException
    return found


def _api_urls() -> tuple[str | None, str | None]:
    """The API's URL as it is shown to users, and as workers reach it: what the configuration says of each."""
    conf = compatibility.configuration()
    shown, execution = (
        conf.get("api", "base_url", fallback=None),
        conf.get("core", "execution_api_server_url", fallback=None),
    )
    reached = execution.rstrip("/").removesuffix("/execution") if execution else None
    return shown.rstrip("/") if shown else None, reached


def own_url() -> str | None:
    """What tells this installation from others: the URL of its API; None where it has only what every one has."""
    return next((url for url in _api_urls() if url and "://" in url and url != DEFAULT_API_URL), None)


def triggerer_runs() -> bool | None:
    """Whether a triggerer is alive, as the API server's health page says, which needs no password; None: not told."""
    shown, reached = _api_urls()
    base = reached or shown or DEFAULT_API_URL
    if base.startswith("/"):
        base = DEFAULT_API_URL + base
    try:
        with urllib.request.urlopen(f"{base}/api/v2/monitor/health", timeout=HEALTH_SECONDS) as response:  # noqa: S310
            status = json.load(response)["triggerer"]["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return bool(status == "healthy")


def run_is_alive(dag_id: str, dag_run_id: str) -> bool:
    """Whether the run exists and is not over, as the execution API says. For the threads of a triggerer."""
    from airflow.sdk.execution_time import comms, task_runner  # noqa: PLC0415

    question = comms.GetDRCount(dag_id=dag_id, run_ids=[dag_run_id], states=["queued", "running"])
    count: int = _answered(task_runner.SUPERVISOR_COMMS.asend(question)).count
    return count > 0


def run_is_alive_here(dag_id: str, dag_run_id: str) -> bool:
    """As `run_is_alive`, for the main thread of a task process: its line to Airflow is no other thread's."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415

    count: int = RuntimeTaskInstance.get_dr_count(dag_id, run_ids=[dag_run_id], states=["queued", "running"])
    return count > 0


def ask_on(loop: asyncio.AbstractEventLoop) -> None:
    """Have this triggerer's threads ask Airflow on its event loop.

    What asks from elsewhere reads answers that are not its own, and Airflow 3.1 then ends the whole triggerer
    ("Response read out of order!").
    """
    _loops[:] = [loop]


def _answered(question: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(question, _loops[0]).result(ANSWER_SECONDS)


@dataclass(frozen=True, slots=True)
class Triggerers:
    """Those that beat, how many triggers they take together, and how many triggers there are.

    `waiting` of these are ours; of them `unassigned` have been in no triggerer for a minute.
    """

    running: int
    capacity: int
    triggers: int = 0
    waiting: int = 0
    unassigned: int = 0


def triggerers() -> Triggerers:
    """What Airflow's database says of them. Raises whatever that raises where it cannot be reached."""
    from airflow.jobs.job import Job  # noqa: PLC0415
    from airflow.models.trigger import Trigger  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import func, select  # noqa: PLC0415

    with create_session(scoped=False) as session:
        jobs = session.scalars(select(Job).where(Job.job_type == "TriggererJob", Job.state == "running"))
        running = sum(bool(job.is_alive()) for job in jobs)
        ours = Trigger.classpath.startswith("penstock_airflow.")
        long_ago = datetime.now(tz=UTC) - timedelta(seconds=UNASSIGNED_SECONDS)
        nowhere = Trigger.triggerer_id.is_(None) & (Trigger.created_date < long_ago)
        triggers, waiting, unassigned = (
            session.scalar(select(func.count()).select_from(Trigger).where(*which))
            for which in ((), (ours,), (ours, nowhere))
        )
    capacity = compatibility.configuration().getint("triggerer", "capacity")
    return Triggerers(running, running * capacity, triggers, waiting, unassigned)
