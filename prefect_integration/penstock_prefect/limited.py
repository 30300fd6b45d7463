"""`@limited` over tasks, flows and plain functions, `limit_all` over what is there; `slots`, `aslots` around blocks."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from penstock.errors import ClaimError
from penstock.settings import OnBlocked
from prefect.flows import Flow
from prefect.tasks import Task

from penstock_prefect import gate
from penstock_prefect.claims import Limits, asked_pools
from penstock_prefect.facts import MARK
from penstock_prefect.wrapping import found_in, put_under, wrapped

if TYPE_CHECKING:
    from penstock.claim import PoolsLike
    from penstock.lease import Lease

Limitable = TypeVar("Limitable", bound=Callable[..., Any])


@overload
def limited(target: Limitable, /) -> Limitable: ...


@overload
def limited(
    *pools: PoolsLike,
    slots: int | None = None,
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
    max_concurrent: int | None = None,
    tag_concurrency_limits: Sequence[Mapping[str, Any]] | None = None,
) -> Callable[[Limitable], Limitable]: ...


def limited(
    *pools: Any,
    slots: int | None = None,
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
    max_concurrent: int | None = None,
    tag_concurrency_limits: Sequence[Mapping[str, Any]] | None = None,
) -> Any:
    """Put a task or a flow under limits. Best placed above `@task` or `@flow`; below works too.

    On a task: each attempt takes its slots before the function starts and gives them back when it ends; cache hits and
    retry delays hold none. On a flow: a run claim, which counts in the run total and the run-tag limits and holds the
    pools named here for the whole run; `max_concurrent` and `tag_concurrency_limits` (as in the configuration's `ops`
    block) limit the tasks of one run, in place of the configured ones; those of the outermost limited flow count.
    Without pools (`@limited`): only the limits of the run, and those on its tasks. A task called inside another one is
    an op of its own beside it: a run's limits must leave room for both. Wait for the futures of what is submitted, as
    Prefect asks: the run's slots are free when the flow's function returns.

    `priority`: each step is worth a minute of waiting; a flow's is added to that of its tasks. `on_blocked`: "wait" (up
    to `wait_timeout_seconds`, then WaitTimeout), "skip" (the run ends as Completed, named "Skipped", with the reason as
    its message), or "fail" (raises Blocked).

    Above `@task` or `@flow` the time of waiting does not count against `timeout_seconds`: Prefect, which would count
    it, finds None there, and the wrapped function is given the time instead, from the grant on. Raises ClaimError on
    unusable pools or limits, TypeError on what cannot be limited.
    """
    if len(pools) == 1 and not isinstance(pools[0], str | Mapping) and callable(pools[0]):
        return _limit(pools[0], Limits())
    within = {"max_concurrent": max_concurrent, "tag_concurrency_limits": tag_concurrency_limits}
    limits = Limits(
        pools=asked_pools(pools, slots),
        priority=priority,
        on_blocked=on_blocked,
        wait_timeout_seconds=wait_timeout_seconds,
        within={word: value for word, value in within.items() if value is not None} or None,
    )
    return functools.partial(_limit, limits=limits)


def limit_all(
    *targets: Any,
    pools: PoolsLike | Sequence[PoolsLike] = (),
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
) -> list[str]:
    """Put what is already defined under limits, as it stands: `limit_all(my_flows)`. Returns the names of what was.

    A target is a module (its own tasks and flows, not those that it imports), a flow (with the tasks and flows that its
    function names), a task, or an iterable of these. Flows come under the limits of runs; tasks take a slot of each of
    the `pools`, if any are named. What is under `@limited` already stays as it is.

    The objects are changed in place, so that everybody who has them runs them under limits. Where flows are loaded by
    their entrypoint (`serve`, workers), call it where the module is loaded, not below `if __name__ == "__main__"`.
    Raises as `limited`.
    """
    how: dict[str, Any] = {"on_blocked": on_blocked, "wait_timeout_seconds": wait_timeout_seconds, "priority": priority}
    named = [pools] if isinstance(pools, str | Mapping) else list(pools)
    of_tasks, of_flows = Limits(pools=asked_pools(named), **how), Limits(**how)
    limited_names = []
    for target in found_in(targets):
        if not hasattr(target.fn, MARK):
            put_under(target, of_tasks if isinstance(target, Task) else of_flows)
            limited_names.append(target.name)
    return limited_names


@contextlib.contextmanager
def slots(
    *pools: PoolsLike | int,
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
) -> Iterator[Lease | None]:
    """Hold slots for the length of a block: `slots("database", 2)`, `slots("database:2", "api")`. Anywhere.

    What a run or an op around the block holds already is not taken again; the lease is then theirs. It is None when
    Penstock is inactive, and where that run's process is another one.
    Raises as Engine.acquire; "skip" raises Skipped here, since a block cannot be left out.
    """
    limits = _block_limits(pools, priority, on_blocked, wait_timeout_seconds)
    with gate.attempt(limits) as attempt, attempt.applied():
        yield attempt.standing.lease


@contextlib.asynccontextmanager
async def aslots(
    *pools: PoolsLike | int,
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
) -> AsyncIterator[Lease | None]:
    """As `slots`, without blocking the event loop."""
    limits = _block_limits(pools, priority, on_blocked, wait_timeout_seconds)
    async with gate.attempt_async(limits) as attempt:
        with attempt.applied():
            yield attempt.standing.lease


def _block_limits(
    pools: tuple[PoolsLike | int, ...], priority: int, on_blocked: OnBlocked, wait_timeout_seconds: float | None
) -> Limits:
    asked = asked_pools(pools)
    if not asked:
        raise ClaimError("name at least one pool")
    return Limits(pools=asked, priority=priority, on_blocked=on_blocked, wait_timeout_seconds=wait_timeout_seconds)


def _limit(target: Any, limits: Limits) -> Any:
    function = target.fn if isinstance(target, Task | Flow) else target
    if hasattr(function, MARK):
        raise TypeError(f"{function.__qualname__} is under @limited already; name all its pools in one @limited")
    if isinstance(target, Task | Flow):
        return put_under(copy.copy(target), limits)
    if isinstance(target, FunctionType):
        return wrapped(target, limits, timeout_seconds=None)
    raise TypeError(
        f"@limited takes a task, a flow or a function, not {target!r}; put it above @task or @flow "
        "(and these above @classmethod or @staticmethod)"
    )
