"""What Prefect is asked about the runs that hold a lease without a process of ours behind it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import httpx
from penstock.claim import ClaimKind
from penstock.hooks import installed_plugins
from penstock.hookspecs import hookimpl
from penstock.store.contract import ClaimRow
from prefect.exceptions import ObjectNotFound

from penstock_prefect import asking
from penstock_prefect.claims import HOST
from penstock_prefect.settings import settings
from penstock_prefect.suspended import RESUMING, is_suspended

log = logging.getLogger("penstock.prefect")
IN_PROCESS = "AwaitingRetry"
"""The name of the one Scheduled state in which a run still has its process."""


def attempt_is_alive(flow_run_id: str, attempt: int, *, held_while_suspended: bool = False) -> bool:
    """Whether the API has the run, and that attempt of it is to come or under way: not over or followed by another,
    and suspended only where it keeps what it holds. Raises httpx.HTTPError when it does not answer.
    """
    with asking.client() as client:
        try:
            run = client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return False
    state = run.state
    if state is None:
        return True
    if is_suspended(state):
        return held_while_suspended and not _is_too_late(state)
    if state.is_final():
        return False
    if state.name == RESUMING:
        return held_while_suspended
    if state.is_scheduled() and state.name != IN_PROCESS:
        return bool(run.run_count < attempt)
    return True


def _is_too_late(suspended: Any) -> bool:
    """Whether nobody can resume it any more."""
    until: datetime | None = suspended.state_details.pause_timeout
    return until is not None and until < datetime.now(UTC)


class _Probe:
    @hookimpl
    def penstock_holder_alive(self, claim: ClaimRow) -> bool | None:
        """None for what is not this installation's, or cannot be told now."""
        run = claim.claim
        ours = (run.host, run.deployment) == (HOST, settings().deployment_name)
        if not ours or run.kind is not ClaimKind.RUN or run.run_id is None:
            return None
        try:
            held = settings().holds_while_suspended(run.pools)
            return attempt_is_alive(run.run_id, run.attempt, held_while_suspended=held)
        except httpx.HTTPError as error:
            log.warning("Penstock: the API does not say whether run %s is over: %s", run.run_id, error)
            return None


def watch() -> None:
    """Have this process asked whether runs that hold a lease are alive."""
    if not installed_plugins().has_plugin(__name__):
        installed_plugins().register(_Probe(), __name__)
