"""What the attempt in this process holds: given back at its end, or kept while its operator is deferred."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.errors import LeaseLost, StoreUnavailable
from penstock.settings import StoreTimes

from penstock_airflow import compatibility, policy
from penstock_airflow.installation import engine, installation, patiently
from penstock_airflow.trigger import HoldingTrigger
from penstock_airflow.ways import is_released

if TYPE_CHECKING:
    from penstock.lease import Lease

log = logging.getLogger("penstock.airflow")
_held: list[tuple[int, Lease]] = []  # with the id of the process that holds it: a fork of it holds nothing


def hold(lease: Lease) -> None:
    """Keep the lease until the attempt has ended."""
    lease.on_lost.append(_tell_loss)
    _held.append((os.getpid(), lease))
    if not compatibility.after_execution(policy.leave_gate):
        log.warning(
            "Penstock does not know this Airflow's task runner: slots come back only %g s after the task's end; "
            "a newer Penstock may know it",
            installation().session_ttl_seconds,
        )


def is_anything_held() -> bool:
    """Whether the attempt holds a lease, or a fork of its process has the memory of one."""
    return bool(_held)


def leave(error: BaseException | None = None) -> None:
    """Give back the slots of the attempt that has ended with this error, and this process's session.

    What an operator holds that defers by itself goes on to its trigger. A store that is away does not make the task
    fail: it is said in the log, and the slots expire.
    """
    if not any(pid == os.getpid() for pid, _ in _held):
        return  # nothing held; or a fork that a user's code made and let return: its parent still holds the slots
    try:
        while _held:
            lease = _held.pop()[1]
            if not compatibility.is_deferral(error) or not _keep_while_deferred(lease, error):
                lease.release()
        engine().close()
    except Exception as away:  # whatever comes of the store: the task has done its work, and must not fail for it
        log.warning("Penstock: the slots could not be given back, they are freed when they expire: %s", away)


def _keep_while_deferred(lease: Lease, deferral: Any) -> bool:
    """Leave the lease to the trigger for which its operator leaves the worker. False where it is to be given back.

    Raises StoreUnavailable, and has said in the log what that means.
    """
    label = str(lease.claim)
    if is_released(list(lease.claim.pools), installation().release_while_deferred):
        log.info("Penstock: %s gives its slots back while it is deferred", label)
        return False
    if compatibility.shares_its_stream(deferral.trigger):
        log.warning("Penstock: %s gives its slots back: a trigger that shares a stream cannot keep them", label)
        return False
    try:
        trigger = HoldingTrigger.around(deferral.trigger, replace(lease.claim, claim_id=lease.claim_id))
        _hand_over(lease)
    except TypeError as error:
        log.warning(
            "Penstock: %s gives its slots back, its trigger cannot be made again from what it says: %s", label, error
        )
        return False
    except LeaseLost as error:
        log.warning("Penstock: %s", error)
        return True
    except StoreUnavailable:
        log.error(
            "Penstock: the store is away, so %s cannot keep its slots while it is deferred: the job that it waits for "
            "goes on without them from when they expire, in %g s at most, and others may run beside it. See that the "
            "store answers; where the job must not run beside others, end it and clear the task",
            label,
            installation().session_ttl_seconds + StoreTimes().grace_seconds,
        )
        raise
    deferral.trigger = trigger
    log.info("Penstock: %s keeps its slots while it is deferred", label)
    return True


def _hand_over(lease: Lease) -> None:
    """Make the lease a ticket. Raises LeaseLost, and StoreUnavailable when the store stays away for half the session's
    time: it is not for longer that the slots are surely still there, and others want the worker.
    """
    seconds, tried = engine().settings.ticket_seconds, 0

    def hand_over() -> None:
        nonlocal tried
        tried += 1
        try:
            lease.hand_over(seconds=seconds)
        except LeaseLost:
            # Of an earlier try only the answer may have been lost: nobody else knows this claim, so it is the ticket.
            if tried == 1 or not engine().store.renew([lease.claim_id], ticket_seconds=seconds):
                raise

    patiently(hand_over, patience_seconds=installation().session_ttl_seconds / 2)


def _tell_loss(lease: Lease) -> None:
    log.error(
        "Penstock: %s has lost its slots: the store could not be reached in time, or somebody freed them. "
        "The task goes on, and others may run beside it",
        lease.claim,
    )
