"""`@limited` over tasks, flows and plain functions; `slots` and `aslots` around blocks."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from penstock.errors import ClaimError
from prefect.flows import Flow
from prefect.tasks import Task
from prefect.utilities.timeout import timeout, timeout_async

from penstock_prefect import gate
from penstock_prefect.claims import Limits, OnBlocked, asked_pools
from penstock_prefect.facts import MARK

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
) -> Callable[[Limitable], Limitable]: ...


def limited(
    *pools: Any,
    slots: int | None = None,
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
) -> Any:
    """Put a task or a flow under limits. Best placed above `@task` or `@flow`; below works too.

    On a task: each attempt takes its slots before the function starts and gives them back when it ends; cache hits and
    retry delays hold none. On a flow: a run claim, which counts in the run total and the run-tag limits and holds the
    pools named here for the whole run. Without pools (`@limited`): only the limits of the run.

    `on_blocked`: "wait" (up to `wait_timeout_seconds`, then WaitTimeout), "skip" (the run ends as Completed, named
    "Skipped", with the reason as its message), or "fail" (raises Blocked). Above `@task` or `@flow` the time of waiting
    does not count against `timeout_seconds`. Raises ClaimError on unusable pools, TypeError on what cannot be limited.
    """
    if len(pools) == 1 and not isinstance(pools[0], str | Mapping) and callable(pools[0]):
        return _limit(pools[0], Limits())
    limits = Limits(
        pools=asked_pools(pools, slots),
        priority=priority,
        on_blocked=on_blocked,
        wait_timeout_seconds=wait_timeout_seconds,
    )
    return functools.partial(_limit, limits=limits)


@contextlib.contextmanager
def slots(
    *pools: PoolsLike | int,
    priority: int = 0,
    on_blocked: OnBlocked = "wait",
    wait_timeout_seconds: float | None = None,
) -> Iterator[Lease | None]:
    """Hold slots for the length of a block: `slots("database", 2)`, `slots("database:2", "api")`. Anywhere.

    The lease is None when Penstock is inactive. What a run or an op around the block holds already is not taken again.
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
        return _limited_object(target, limits)
    if isinstance(target, FunctionType):
        return _wrapped(target, limits, timeout_seconds=None)
    raise TypeError(
        f"@limited takes a task, a flow or a function, not {target!r}; put it above @task or @flow "
        "(and these above @classmethod or @staticmethod)"
    )


def _limited_object(original: Any, limits: Limits) -> Any:
    """A copy with another function: key, version, entrypoint, name and schema stay those of the user's own."""
    limited_object = copy.copy(original)
    limited_object.fn = _wrapped(original.fn, limits, timeout_seconds=original.timeout_seconds)
    # Prefect starts its timeout outside the function, where waiting for slots would count: the wrapper applies it.
    limited_object.timeout_seconds = None
    limited_object.with_options = functools.partial(_with_options, original, limited_object.fn, limits)
    return limited_object


def _with_options(original: Any, wrapper: Any, limits: Limits, **options: Any) -> Any:
    changed = _limited_object(original.with_options(**options), limits)
    # Prefect binds methods by attributes of the function.
    bound = {name: value for name, value in vars(wrapper).items() if name in ("__prefect_self__", "__prefect_cls__")}
    vars(changed.fn).update(bound)
    return changed


def _wrapped(function: Any, limits: Limits, timeout_seconds: float | None) -> Any:
    """The function behind the gate, of the same kind as Prefect tells kinds apart."""
    if inspect.isasyncgenfunction(function):
        wrapper = _async_generator(function, limits, timeout_seconds)
    elif inspect.iscoroutinefunction(function):
        wrapper = _coroutine(function, limits, timeout_seconds)
    elif inspect.isgeneratorfunction(function):
        wrapper = _generator(function, limits, timeout_seconds)
    else:
        wrapper = _plain(function, limits, timeout_seconds)
    setattr(wrapper, MARK, limits)
    if isinstance(function, FunctionType):
        wrapper.__code__ = _located_code(wrapper, function)
    return wrapper


def _located_code(wrapper: Any, function: FunctionType) -> Any:
    """The wrapper's code under the location of the user's, and with it among its constants.

    Prefect hashes a function's code into the task key and reads a flow's version and entrypoint off its file.
    """
    code, users = wrapper.__code__, function.__code__
    return code.replace(
        co_filename=users.co_filename,
        co_firstlineno=users.co_firstlineno,
        co_name=users.co_name,
        co_qualname=users.co_qualname,
        co_consts=(*code.co_consts, users),
    )


def _plain(function: Any, limits: Limits, timeout_seconds: float | None) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with gate.attempt(limits) as attempt:
            if attempt.skipped is not None:
                return attempt.skipped
            with attempt.applied(), timeout(timeout_seconds):
                return function(*args, **kwargs)

    return wrapper


def _coroutine(function: Any, limits: Limits, timeout_seconds: float | None) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with gate.attempt_async(limits) as attempt:
            if attempt.skipped is not None:
                return attempt.skipped
            with attempt.applied(), timeout_async(timeout_seconds):
                return await function(*args, **kwargs)

    return wrapper


def _generator(function: Any, limits: Limits, timeout_seconds: float | None) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with gate.attempt(limits) as attempt:
            if attempt.skipped is not None:
                return attempt.skipped
            with timeout(timeout_seconds):
                return (yield from _forward(function(*args, **kwargs), attempt))

    return wrapper


def _async_generator(function: Any, limits: Limits, timeout_seconds: float | None) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with gate.attempt_async(limits) as attempt:
            if attempt.skipped is not None:
                return
            with timeout_async(timeout_seconds):
                async with contextlib.aclosing(_forward_async(function(*args, **kwargs), attempt)) as items:
                    async for item in items:
                        yield item

    return wrapper


def _forward(generator: Any, attempt: gate.Attempt) -> Generator[Any, Any, Any]:
    """The generator's items. Between them the consumer runs, which does not stand under this attempt."""
    resume, value = generator.send, None
    try:
        while True:
            with attempt.applied():
                item = resume(value)
            try:
                resume, value = generator.send, (yield item)
            except Exception as error:
                resume, value = generator.throw, error
    except StopIteration as stop:
        return stop.value
    finally:
        with attempt.applied():
            generator.close()


async def _forward_async(generator: Any, attempt: gate.Attempt) -> AsyncGenerator[Any, Any]:
    try:
        while True:
            with attempt.applied():
                try:
                    item = await anext(generator)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        with attempt.applied():
            await generator.aclose()
