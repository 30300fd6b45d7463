"""How a task, a flow or a function is wrapped so that Prefect takes it for the one that it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from prefect.flows import Flow
from prefect.tasks import Task
from prefect.utilities.timeout import timeout, timeout_async

from penstock_prefect import gate
from penstock_prefect.attempts import Attempt
from penstock_prefect.claims import Limits, check_of_task
from penstock_prefect.ending import free_slots
from penstock_prefect.facts import MARK


def put_under(target: Any, limits: Limits) -> Any:
    """The task or flow itself, with another function: key, version, entrypoint, name and schema stay as they are."""
    if isinstance(target, Task):
        check_of_task(target.name, limits)
    original = copy.copy(target)
    target.fn = wrapped(original.fn, limits, timeout_seconds=original.timeout_seconds)
    # Prefect starts its timeout outside the function, where waiting for slots would count: the wrapper applies it.
    target.timeout_seconds = None
    target.with_options = functools.partial(_with_options, original, target.fn, limits)
    if isinstance(target, Flow):
        for hooks in ("on_crashed_hooks", "on_cancellation_hooks"):
            # One list for both: `with_options` starts from the original, and hooks may be added to the target later.
            both = [*(hook for hook in getattr(original, hooks) if hook is not free_slots), free_slots]
            setattr(original, hooks, both)
            setattr(target, hooks, both)
    return target


def found_in(targets: Iterable[Any]) -> Iterator[Any]:
    """The tasks and flows that `limit_all` was given, each once. Raises TypeError on what is neither."""
    found: dict[int, Any] = {}
    for target in targets:
        _collect(target, found)
    yield from found.values()


def _collect(target: Any, found: dict[int, Any]) -> None:
    if isinstance(target, ModuleType):
        for value in vars(target).values():
            if isinstance(value, Task | Flow) and value.fn.__module__ == target.__name__:
                found.setdefault(id(value), value)
    elif isinstance(target, Task | Flow):
        if id(target) in found:
            return
        found[id(target)] = target
        if isinstance(target, Flow):
            for value in _named_by(target.fn):
                _collect(value, found)
    elif isinstance(target, Iterable) and not isinstance(target, str | bytes):
        for one in target:
            _collect(one, found)
    else:
        raise TypeError(f"limit_all takes modules, flows, tasks and iterables of them, not {target!r}")


def _named_by(function: Any) -> Iterator[Any]:
    """The tasks and flows that a function's code names, as globals or from around it."""
    around = inspect.getclosurevars(inspect.unwrap(function))
    for value in {**around.globals, **around.nonlocals}.values():
        if isinstance(value, Task | Flow):
            yield value


def _with_options(original: Any, wrapper: Any, limits: Limits, **options: Any) -> Any:
    changed = put_under(original.with_options(**options), limits)
    # Prefect binds methods by attributes of the function.
    bound = {name: value for name, value in vars(wrapper).items() if name in ("__prefect_self__", "__prefect_cls__")}
    vars(changed.fn).update(bound)
    return changed


def wrapped(function: Any, limits: Limits, timeout_seconds: float | None) -> Any:
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


def _forward(generator: Any, attempt: Attempt) -> Generator[Any, Any, Any]:
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


async def _forward_async(generator: Any, attempt: Attempt) -> AsyncGenerator[Any, Any]:
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
