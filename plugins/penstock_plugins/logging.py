"""What becomes of claims, as log records of `penstock.events`: one event each, its facts as flat `extra` fields.

Below WARNING they are for those who ask: by setting the logger's level, or with `PENSTOCK_LOG_JSON=1`, which writes
them as lines of JSON to stderr. Of tags only the keys are told, of a URL neither user nor query: they may be secret.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from penstock.hookspecs import hookimpl
from penstock.text import shown

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.decision import Reason, Waiting
    from penstock.hookspecs import Why
    from penstock.lease import Lease

JSON_VARIABLE = "PENSTOCK_LOG_JSON"
_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (RFC 3339, UTC), level, logger, message, and its `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        time_utc = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time_utc.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@hookimpl(trylast=True)
def penstock_waiting(claim: Claim, waiting: Waiting) -> None:
    """INFO: which limits bar the claim."""
    limits = _limits(waiting.reasons)
    _tell("waiting", "%s waits for %s", claim, shown(", ".join(limits)) or "its turn", **_of(claim), limits=limits)


@hookimpl(trylast=True)
def penstock_granted(lease: Lease, waited_seconds: float) -> None:
    """INFO: the limits that the lease holds slots of."""
    if not _logger().isEnabledFor(logging.INFO):  # on the hot path, and mostly nobody listens
        return
    waited = round(waited_seconds, 3)
    facts = {**_of(lease.claim), "limits": sorted(lease.fences), "waited_seconds": waited}
    _tell("granted", "%s granted after %.1f s", lease.claim, waited, **facts)


@hookimpl(trylast=True)
def penstock_refused(claim: Claim, reasons: Sequence[Reason], why: Why, waited_seconds: float) -> None:
    """INFO: why, and which limits barred the claim."""
    limits = _limits(reasons)
    facts = {**_of(claim), "limits": limits, "why": why, "waited_seconds": round(waited_seconds, 3)}
    _tell("refused", "%s refused (%s) for %s", claim, why, shown(", ".join(limits)) or "no limit", **facts)


@hookimpl(trylast=True)
def penstock_released(lease: Lease, held_seconds: float) -> None:
    """INFO: how long it was held."""
    if not _logger().isEnabledFor(logging.INFO):  # on the hot path, and mostly nobody listens
        return
    held = round(held_seconds, 3)
    facts = {**_of(lease.claim), "limits": sorted(lease.fences), "held_seconds": held}
    _tell("released", "%s released after %.1f s", lease.claim, held, **facts)


@hookimpl(trylast=True)
def penstock_lost(lease: Lease) -> None:
    """WARNING: its holder may still be at work."""
    held = round(time.monotonic() - lease.granted_at, 3)
    facts = {**_of(lease.claim), "limits": sorted(lease.fences), "held_seconds": held}
    _tell("lost", "%s lost after %.1f s", lease.claim, held, level=logging.WARNING, **facts)


@hookimpl(trylast=True)
def penstock_expired(claim: Claim, held_seconds: float | None, reason: str) -> None:
    """INFO, not more: the process that finds it is mostly an innocent one."""
    held = None if held_seconds is None else round(held_seconds, 3)
    _tell("expired", "%s expired: %s", claim, reason, **_of(claim), held_seconds=held, reason=reason)


@hookimpl(trylast=True)
def penstock_limit_changed(key: str, capacity: int | None) -> None:
    """INFO: the new capacity, None where it is unlimited."""
    number = "unlimited" if capacity is None else capacity
    _tell("limit_changed", "%s is now %s", shown(key), number, limits=[key], capacity=capacity)


def _tell(event: str, text: str, *arguments: object, level: int = logging.INFO, **facts: Any) -> None:
    _logger().log(level, text, *arguments, extra={"event": event, **facts})


def _limits(reasons: Sequence[Reason]) -> list[str]:
    return [reason.limit for reason in reasons]


def _of(claim: Claim) -> dict[str, Any]:
    """What is told of every claim."""
    return {
        "claim_id": claim.claim_id,
        "claim_kind": str(claim.kind),
        "host": claim.host,
        "deployment": claim.deployment,
        "run_id": claim.run_id,
        "op_id": claim.op_id,
        "attempt": claim.attempt,
        "pools": [f"{name}:{slots}" for name, slots in sorted(claim.pools.items())],
        "tag_keys": sorted(claim.tags),
        "priority": claim.priority,
        "url": _without_secrets(claim.url),
    }


def _without_secrets(url: str | None) -> str | None:
    """The URL without user, password, query and fragment; None where it cannot be taken apart."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")) or None


@cache
def _logger() -> logging.Logger:
    """The logger; made ready at the first event, so that a program may set its own level and handlers first."""
    logger = logging.getLogger("penstock.events")
    if os.environ.get(JSON_VARIABLE) == "1" and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # else a program's own handlers would write each event once more
    elif logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)  # what people need to read, hosts and `penstock run` say in their own words
    return logger
