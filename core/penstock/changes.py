"""Changing the configuration: written as one new version, then brought to the limits one at a time."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.config import Concurrency, PoolLimit
from penstock.errors import ConfigChanged
from penstock.plan import Plan, difference, touched_limits
from penstock.rules import configured_keys, is_runs_own, resolve_limit

if TYPE_CHECKING:
    from penstock.engine import Engine


def merged(new: Concurrency, old: Concurrency, *, prune: bool = False) -> tuple[Concurrency, list[str]]:
    """What `apply` of `new` over `old` comes to, and the explicit pool limits that stay though not named in it."""
    kept = [] if prune else [name for name in old.pools.limits if name not in new.pools.limits]
    for name in kept:
        new = new.with_pool(name, old.pools.limits[name])
    return new, kept


def plan(engine: Engine, new: Concurrency, *, prune: bool = False) -> Plan:
    """What `apply` of `new` would change in the store as it stands now, and whom it would touch."""
    version, before = engine.configuration(fresh=True)
    after, kept = merged(new, before, prune=prune)
    return Plan(
        version,
        after,
        difference(before, after),
        touched_limits(before, after, engine.snapshot(), lambda claim: engine.demands(claim, after)),
        {name: before.pools.limits[name].limit for name in kept},
    )


def apply(engine: Engine, concurrency: Concurrency, *, expected_version: int, by: str | None = None) -> int:
    """Put a configuration in force and return its version. `by` goes on record, else the user of this process.

    Raises ConfigChanged if `expected_version` is no longer the one in force, ClaimError for what no file could say;
    nothing is written then.
    """
    concurrency = concurrency.checked()
    _, before = engine.configuration(fresh=True)
    keys = sorted({*configured_keys(before), *configured_keys(concurrency)})
    capacities = {key: resolve_limit(key, concurrency)[0] for key in keys}
    changed = {key: new for key, new in capacities.items() if new != resolve_limit(key, before)[0]}
    version = engine.store.configure(
        concurrency.document(),
        expected_version=expected_version,
        by=who() if by is None else by,
        origin=socket.gethostname(),
        changed=changed,
    )
    settle_all(engine)
    for key, capacity in changed.items():
        engine.hook.penstock_limit_changed(key=key, capacity=capacity)
    return version


def edit(engine: Engine, change: Callable[[Concurrency], Concurrency], *, by: str | None = None) -> int:
    """Put what `change` makes of the configuration in force; made again when somebody else changes it meanwhile.

    Returns the new version. `by` as in `apply`. For changes that stand on their own, such as one limit; a plan that was
    shown is applied.
    """
    while True:
        version, concurrency = engine.configuration(fresh=True)
        try:
            return apply(engine, change(concurrency), expected_version=version, by=by)
        except ConfigChanged:  # each time somebody else's change came through, so this comes to an end
            continue


def set_pool(engine: Engine, name: str, pool: PoolLimit | None) -> int:
    """Set one explicit pool limit, or (None) delete it: the pool falls to the default. Returns the new version."""
    return edit(engine, lambda concurrency: concurrency.with_pool(name, pool))


def settle_all(engine: Engine) -> None:
    """Bring every limit in line with the configuration in force; repeated when that changes meanwhile."""
    while True:
        version, concurrency = engine.configuration(fresh=True)
        # What a run brought of its own is fixed for its life; no configuration changes it.
        rows = [row for row in engine.store.limit_rows() if not is_runs_own(row.key, row.source)]
        keys = {row.key for row in rows} | set(configured_keys(concurrency))
        if all(engine.store.settle(key, *resolve_limit(key, concurrency), version=version) for key in sorted(keys)):
            engine.store.settled(version)
            engine.store.grant_pass()
            return


def who() -> str:
    """The user of this process, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
