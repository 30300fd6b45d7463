"""Changing the configuration: written as one new version, then brought to the limits one at a time."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING

from penstock.config import Concurrency, PoolLimit, not_enforced_yet
from penstock.errors import ConfigError, Fault
from penstock.rules import configured_keys, resolve_limit

if TYPE_CHECKING:
    from penstock.engine import Engine


def merged(new: Concurrency, old: Concurrency, *, prune: bool = False) -> tuple[Concurrency, list[str]]:
    """What `apply` of `new` over `old` comes to, and the explicit pool limits that stay though not named in it."""
    kept = [] if prune else [name for name in old.pools.limits if name not in new.pools.limits]
    for name in kept:
        new = new.with_pool(name, old.pools.limits[name])
    return new, kept


def apply(engine: Engine, concurrency: Concurrency, *, expected_version: int) -> int:
    """Put a configuration in force and return its version.

    Raises ConfigError naming what this version does not enforce, and ConfigChanged if `expected_version` is no longer
    the one in force; nothing is written then.
    """
    if names := not_enforced_yet(concurrency):
        raise ConfigError(
            [Fault("not enforced by this version of Penstock, so it is not applied", path=n) for n in names]
        )
    _, before = engine.configuration(fresh=True)
    version = engine.store.configure(
        concurrency.document(), expected_version=expected_version, by=_who(), origin=socket.gethostname()
    )
    settle_all(engine)
    for key in sorted({*configured_keys(before), *configured_keys(concurrency)}):
        capacity = resolve_limit(key, concurrency)[0]
        if capacity != resolve_limit(key, before)[0]:
            engine.hook.penstock_limit_changed(key=key, capacity=capacity)
    return version


def set_pool(engine: Engine, name: str, pool: PoolLimit | None) -> int:
    """Set one explicit pool limit, or (None) delete it: the pool falls to the default. Returns the new version."""
    version, concurrency = engine.configuration(fresh=True)
    return apply(engine, concurrency.with_pool(name, pool), expected_version=version)


def settle_all(engine: Engine) -> None:
    """Bring every limit in line with the configuration in force; repeated when that changes meanwhile."""
    while True:
        version, concurrency = engine.configuration(fresh=True)
        keys = {row.key for row in engine.store.limit_rows()} | set(configured_keys(concurrency))
        if all(engine.store.settle(key, *resolve_limit(key, concurrency), version=version) for key in sorted(keys)):
            engine.store.settled(version)
            engine.store.grant_pass()
            return


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
