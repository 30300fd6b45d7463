"""The three ways of waiting, and which one a claim takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

Way = Literal["defer", "reschedule", "block"]
"""In the order in which they free the worker: it has none while it waits; for seconds now and then; all the time."""


def way_of(pools: Iterable[str], *, otherwise: Way, by_pool: Sequence[tuple[str, Way]]) -> Way:
    """How a claim of these pools waits: of their ways, the one that frees the worker most.

    A pool's way is that of the first glob that matches its name, else `otherwise`; so is that of a claim without pools.
    """
    ways = [next((way for glob, way in by_pool if fnmatchcase(pool, glob)), otherwise) for pool in pools]
    return min(ways or [otherwise], key=get_args(Way).index)


def matches_any(name: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs matches the name."""
    return any(fnmatchcase(name, glob) for glob in globs)


def is_released(pools: Sequence[str], globs: Sequence[str]) -> bool:
    """Whether an op of these pools gives its slots back while it is deferred: when every one of its pools says so.

    A claim is given back whole or not at all, so one pool that is to be held holds the others.
    """
    return bool(pools) and all(matches_any(pool, globs) for pool in pools)
