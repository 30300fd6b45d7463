"""The process of a run that a worker holds slots for: it joins the run's lease, which lives for as long as it does.

Prefect loads this in the run's process, by the entry point `prefect.plugins`, when the worker has set the environment
for it; a gate that is passed before joins as well.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.decision import Granted
from penstock.errors import Blocked, PenstockError, Skipped, StoreUnavailable, WaitTimeout
from penstock.rules import LimitKind
from penstock.store.contract import ClaimState
from prefect.context import FlowRunContext
from prefect.logging import get_logger

from penstock_prefect import asking, installation
from penstock_prefect.absence import Absence
from penstock_prefect.claims import NOWHERE, Limits, Standing
from penstock_prefect.giving_up import Ended, torn_down
from penstock_prefect.tickets import OLDER_HOLDS

try:
    from prefect.plugins import register_hook

    PLUGINS = "PREFECT_PLUGINS"
except ImportError:  # before Prefect 3.7 plugins were an experiment of its
    from prefect._experimental.plugins import register_hook

    PLUGINS = "PREFECT_EXPERIMENTS_PLUGINS"

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.store.contract import RunLease

FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""Where Prefect tells the process of a run, and those that it starts, which run that is."""
CLAIM = "_PENSTOCK_RUN_CLAIM"
"""Where a worker tells the process of a run which claim it holds for that."""
SESSION = "_PENSTOCK_SESSION"
"""Where a process leaves its id and that of its session to the program by which Prefect replaces it (exec)."""

GONE = (
    "Penstock: the slots that a worker held for this run are gone, it goes on WITHOUT THEM: only what is under "
    "@limited is limited. They expired or were freed before this process had begun, or it has another store or "
    "deployment name than the worker. Cancel the run if it must not go on so; a longer session_ttl_seconds keeps "
    "slots for longer without their worker"
)
PAUSE_SECONDS = 1.0
LATER_SECONDS = 5.0

log = get_logger("penstock")
_lock = threading.Lock()
_standings: dict[int, Standing] = {}  # by process id: a fork joins for itself


def prepare(environment: MutableMapping[str, Any] | list[dict[str, Any]], claim_id: str) -> None:
    """Have Prefect load this in the process of a run that is about to start, which is to join that claim.

    Where the environment is a list of `name` and `value`, as Kubernetes has it, the job is described already.
    """
    if not isinstance(environment, MutableMapping):
        return
    environment[CLAIM] = claim_id
    environment[SESSION] = ""  # the worker's own, where such a process has started that: not this run's
    allowed, denied = (_names(environment, f"{PLUGINS}_{which}") for which in ("ALLOW", "DENY"))
    if "penstock" in denied:
        log.warning("Penstock: %s_DENY names it: a flow without limits of its own does not join its slots", PLUGINS)
    if not _is_on(environment, f"{PLUGINS}_ENABLED"):
        environment[f"{PLUGINS}_ENABLED"] = "true"
    elif not allowed:
        return  # all that are installed are loaded
    if "penstock" not in allowed:
        environment[f"{PLUGINS}_ALLOW"] = ",".join([*allowed, "penstock"])


def _names(environment: MutableMapping[str, Any], variable: str) -> list[str]:
    return [name.strip() for name in (environment.get(variable) or "").split(",") if name.strip()]


def _is_on(environment: MutableMapping[str, Any], variable: str) -> bool:
    """As pydantic reads it. The worker's own settings are in a run's environment unless its job variables say more."""
    return str(environment.get(variable) or "").strip().lower() in ("1", "true", "t", "yes", "y", "on")


def standing(engine: Engine, limits: Limits) -> Standing:
    """What this process stands under: its run, if somebody holds a lease for that which it then joins; else nothing.

    Looked for once in each process. Waits for an attempt before this one that holds its slots still, as `limits` say:
    raises Skipped, Blocked or WaitTimeout; and for a store that is away as `on_store_error` says: StoreUnavailable.
    Raises CancelledError when nobody wants this any more.
    """
    began, ended, told = time.monotonic(), Ended(None), False
    patient_until = began
    if engine.settings.on_store_error == "wait":
        patient_until += engine.settings.store_retry_seconds
    while True:
        try:
            if (found := _once(engine, _attempt_here)) is not None:
                return found
            _wait_for_older(limits, time.monotonic() - began)
            if not told:
                log.info("Penstock: this waits: %s", OLDER_HOLDS)
            told = True
        except StoreUnavailable as error:
            if engine.settings.on_store_error == "run":
                return NOWHERE  # the claim says loudly that it goes on without limits
            if time.monotonic() >= patient_until:
                raise
            log.warning("Penstock: the store is away, trying again: %s", error)
        time.sleep(PAUSE_SECONDS)
        if ended.is_set():
            raise torn_down()


def _wait_for_older(limits: Limits, waited_seconds: float) -> None:
    if limits.on_blocked != "wait":
        raise (Skipped if limits.on_blocked == "skip" else Blocked)(OLDER_HOLDS, ())
    timeout = limits.wait_timeout_seconds
    if timeout is not None and waited_seconds >= timeout:
        raise WaitTimeout(f"{OLDER_HOLDS}, after {timeout:g} s; wait longer, or end that attempt")


def _once(engine: Engine, attempt: Callable[[str], int | None]) -> Standing | None:
    """None while an attempt before this one holds its slots. `attempt` tells which one this is, where it can."""
    flow_run_id = os.environ.get(FLOW_RUN)
    if flow_run_id is None:
        return NOWHERE
    with _lock:
        if os.getpid() in _standings:
            return _standings[os.getpid()]
        engine.configuration()
        claim = engine.run_claim(flow_run_id)
        run = engine.store.run_lease(claim.holder or "")
        if run is None or run.state is not ClaimState.HELD:
            found = NOWHERE
        elif run.claim_id != os.environ.get(CLAIM) and (attempt(flow_run_id) or 0) > run.attempt:
            return None
        else:
            found = _joined(engine, claim, run)
        if found is NOWHERE and engine.settings.enforcement != "off":
            _tell_if_gone(flow_run_id)
        _standings[os.getpid()] = found
        return found


def _tell_if_gone(flow_run_id: str) -> None:
    """Once, where this run was given slots that no process of it has found.

    One that was started by such a process is told nothing: the run has lost them since, or gave them back for a while.
    """
    joined = os.environ.get(SESSION, "").partition(":")[0]
    if os.environ.pop(CLAIM, None) is not None and joined in ("", str(os.getpid())):
        asking.tell_run(flow_run_id, GONE)


def _attempt_here(flow_run_id: str) -> int | None:
    """That of the flow run around this code, if it is that one."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or str(context.flow_run.id) != flow_run_id:
        return None
    return int(context.flow_run.run_count)


def _joined(engine: Engine, claim: Claim, run: RunLease) -> Standing:
    """That of the run whose lease this process joins, unless that ends just now: a new one would hold other slots."""
    decision = engine.request(claim).try_step()
    if not isinstance(decision, Granted):
        return NOWHERE
    # Never given back here: it is left with the session, at the end of the process.
    lease = decision.lease
    if lease.claim_id != run.claim_id:
        lease.release()
        return NOWHERE
    if lease.session_id is not None:
        _end_session_before(engine, lease.session_id)
    return replace(standing_of(claim.run_id or "", run), lease=lease, absence=Absence())


def standing_of(run_id: str, run: RunLease) -> Standing:
    """What a task stands under whose run holds that."""
    prefix = f"{LimitKind.POOL}:"
    pools = {key.removeprefix(prefix): slots for key, slots in run.held.items() if key.startswith(prefix)}
    return Standing(run_id=run_id, run_claim_id=run.claim_id, priority=run.priority, run_pools=pools)


def stands_under(standing: Standing) -> None:
    """The run that this process has joined has another lease now."""
    if (joined := _standings.get(os.getpid())) is not None and joined.run_id == standing.run_id:
        _standings[os.getpid()] = standing


def _end_session_before(engine: Engine, session_id: str) -> None:
    """Prefect prepares a run's folder and then becomes its engine: the session of that time would have to expire."""
    before = os.environ.get(SESSION, "").partition(":")
    os.environ[SESSION] = f"{os.getpid()}:{session_id}"
    if before[0] == str(os.getpid()) and before[2] != session_id:
        engine.store.close_session(before[2])


@register_hook  # type: ignore[untyped-decorator]  # Prefect is not installed where types are checked
def setup_environment(*, ctx: Any) -> None:
    """Join at the start, so that a run whose flow knows nothing of Penstock keeps its lease without its worker too."""
    if FLOW_RUN in os.environ and not _joins_at_start():
        threading.Thread(target=_join_later, name="penstock-joins", daemon=True).start()


def _joins_at_start() -> bool:
    """False where the store is away: a run is not kept from its work for that."""
    try:
        if (engine := installation.engine()) is not None:
            # Where an attempt before this one holds slots, a gate waits for it; without one there is nothing to join.
            _once(engine, asking.attempt_to_come)
    except StoreUnavailable as error:
        log.warning("Penstock: the store is away, the run's slots are joined when it is back: %s", error)
        return False
    return True


def _join_later() -> None:
    try:
        while not _joins_at_start():
            time.sleep(LATER_SECONDS)
    except PenstockError:
        log.exception("Penstock: this process does not join the slots of its run")
