"""What can be done from the page. Each is the twin of a command, and calls the functions that it calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock import changes, edits
from penstock.claim import CAPACITY_MAX
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.errors import Ambiguous, ClaimError, ConfigError, LimitNotSettable
from penstock.freeing import chosen, foretold, free, starting_then
from penstock.plan import Plan
from penstock.store.contract import ClaimRow

NotPossible = (Ambiguous, ClaimError, ConfigError, LimitNotSettable)
"""What one who asks for an action can have got wrong."""


def is_settable(key: str) -> bool:
    """Whether `penstock limits set` takes the key."""
    try:
        edits.target_of(key)
    except (ClaimError, LimitNotSettable):
        return False
    return True


def is_set(engine: Engine, key: str) -> bool:
    """Whether `penstock limits delete` has something to delete there."""
    return is_settable(key) and edits.is_set(engine.configuration(fresh=True)[1], edits.target_of(key))


def plan_limit(engine: Engine, key: str, limit: int | None) -> Plan:
    """What `penstock limits set KEY LIMIT`, or (None) `penstock limits delete KEY`, would do.

    Raises LimitNotSettable, ClaimError.
    """
    return changes.plan(engine, _change(engine, key, limit)(engine.configuration(fresh=True)[1]), prune=True)


def set_limit(engine: Engine, key: str, limit: int | None, *, by: str | None, version: int | None = None) -> str:
    """`penstock limits set KEY LIMIT`, or (None) `penstock limits delete KEY`. The key as it is written.

    With the `version` of a plan that was shown: raises ConfigChanged when another one is in force by now.
    """
    change = _change(engine, key, limit)
    if version is None:
        changes.edit(engine, change, by=by)
    else:
        changes.apply(engine, change(engine.configuration()[1]), expected_version=version, by=by)
    return edits.target_of(key).key


def _change(engine: Engine, key: str, limit: int | None) -> Callable[[Concurrency], Concurrency]:
    target = edits.target_of(key)
    concurrency = engine.configuration(fresh=True)[1]
    if limit is None and not edits.is_set(concurrency, target):
        raise LimitNotSettable(f"{target.key} is not set")
    if limit is not None and not 0 <= limit <= CAPACITY_MAX:
        raise LimitNotSettable(f"a limit is a whole number from 0 to {CAPACITY_MAX}")
    return lambda concurrency: edits.with_limit(concurrency, target, limit)


@dataclass(frozen=True, slots=True)
class Freeing:
    """What `penstock free ID --run RUN` would end: `seal` is another one for other claims."""

    rows: Sequence[ClaimRow]
    lines: Sequence[str]

    @property
    def seal(self) -> str:
        """What a form carries, so that what was shown is what ends."""
        return hashlib.sha256("\n".join(sorted(row.claim.claim_id for row in self.rows)).encode()).hexdigest()


def plan_free(engine: Engine, identifier: str | None, run: str | None) -> Freeing:
    """What `penstock free ID --run RUN` would do; nothing where nothing is found. Raises Ambiguous."""
    snapshot = engine.snapshot()
    rows = chosen(snapshot, identifier, run) if identifier or run else []
    return Freeing(rows, foretold(rows, starting_then(snapshot, rows), snapshot.now) if rows else [])


def free_claims(engine: Engine, freeing: Freeing, *, by: str | None) -> tuple[int, int]:
    """`penstock free ID --run RUN --yes`: how many were freed, and had ended meanwhile."""
    freed = free(engine, freeing.rows, by=by)
    return len(freed), len(freeing.rows) - len(freed)
