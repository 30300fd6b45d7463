"""What Prefect's API is asked about. All of it is I/O; nothing here is asked for an attempt that need not wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import prefect.runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate, LogCreate
from prefect.logging import get_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

log = get_logger("penstock")
ANSWER_SECONDS = 3.0
"""So long each part of an answer may take; to connect is tried four times. The beats of a session wait for this too."""
_EVERY_SERVER_HAS = "secret"
_COME_BACK_LATER = (408, 429)


@contextmanager
def client() -> Iterator[Any]:
    """Prefect's client, which asks once: left to itself it asks again for minutes, or for as long as the answer says,
    and whoever asks here has somebody who waits for this thread. Raises httpx.HTTPError.
    """
    settings = {"timeout": ANSWER_SECONDS, "event_hooks": {"response": [_refuse_to_come_back]}}
    once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    with once, get_client(sync_client=True, httpx_settings=settings) as client:
        yield client


def _refuse_to_come_back(response: httpx.Response) -> None:
    if response.is_server_error or response.status_code in _COME_BACK_LATER:
        response.raise_for_status()


def attempt_of(run: Any) -> int:
    """Which attempt a flow run is at, or will be when it has begun: Prefect counts those that have begun."""
    to_come = run.state is None or run.state.is_scheduled() or run.state.is_pending()
    return max(1, int(run.run_count) + int(to_come))


def attempt_to_come(flow_run_id: str) -> int | None:
    """Which attempt of that flow run begins now; None when the API does not say."""
    try:
        with client() as asked:
            return attempt_of(asked.read_flow_run(flow_run_id))
    except Exception as error:  # whatever the client raises: nothing fails for that
        log.warning("Penstock: the API does not say which attempt of the run begins here: %s", error)
        return None


def tell_run(flow_run_id: str, text: str) -> None:
    """Put an error into the log of a flow run, and into this process's, unless that run is over or being cancelled.

    For a process that has no run context yet, nor has Prefect made ready to log. Nothing fails for it.
    """
    try:
        with client() as asked:
            state = asked.read_flow_run(flow_run_id).state
            if state is not None and (state.is_final() or state.is_cancelling()):
                return
            if get_current_settings().logging.to_api.enabled:
                line = {"name": log.name, "level": logging.ERROR, "message": text, "timestamp": datetime.now(UTC)}
                asked.create_logs([LogCreate(**line, flow_run_id=UUID(flow_run_id))])
    except Exception as error:  # whatever the client raises
        log.warning("Penstock: what follows is not in the run's log, the API does not take it: %s", error)
    log.error("%s", text)


def runs_around(flow_run: Any) -> Iterator[str]:
    """The ids of the flow runs of which this is a subflow, the innermost first. Raises as Prefect's client.

    One that was started as a run of a deployment has a parent as well, and is a run of its own.
    """
    with client() as asked:
        while flow_run.parent_task_run_id is not None and flow_run.deployment_id is None:
            task_run = asked.read_task_run(flow_run.parent_task_run_id)
            if task_run.flow_run_id is None:
                return
            yield str(task_run.flow_run_id)
            flow_run = asked.read_flow_run(task_run.flow_run_id)


def own_server() -> str | None:
    """What tells this Prefect server from others, by whatever URL it is reached; None where nothing does.

    A server makes the block types that come with Prefect once, when it first starts, each with an id that no other
    server's has, and keeps them through upgrades. A workspace of Prefect Cloud has one URL for everybody. An ephemeral
    server is nobody else's, so it has nothing to be told by; nor has one that does not answer now, and is asked by the
    next process.
    """
    api = get_current_settings().api
    url = api.url
    if url is None:
        return None
    if url.startswith(str(get_current_settings().cloud.api_url)):
        return str(url)
    try:
        with client() as asked:
            return f"Prefect server {asked.read_block_type_by_slug(_EVERY_SERVER_HAS).id}"
    except Exception as error:  # whatever the client raises: whoever runs here has reached the server before
        log.debug("The server's identity is not known, its name is not checked: %s", error)
        return None


def deployment_name() -> str | None:
    """The name of the deployment to which the flow run here belongs. Raises what Prefect's client raises."""
    name: str | None = prefect.runtime.deployment.name
    return name


def explain(flow_run_id: str, text: str, artifact_id: UUID | None) -> UUID:
    """Put a text into a flow run's artifact, a new one where there is none yet. Raises what Prefect's client raises."""
    with client() as asked:
        if artifact_id is not None:
            asked.update_artifact(artifact_id, ArtifactUpdate(data=text))
            return artifact_id
        description = "Why this run waits for slots, as Penstock knows it."
        wanted = ArtifactCreate(type="markdown", description=description, data=text, flow_run_id=UUID(flow_run_id))
        made: UUID = asked.create_artifact(wanted).id
        return made
