"""News for open pages by server-sent events: one look a second at the store for all who watch."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool

from penstock.errors import PenstockError
from penstock.store.contract import Store

EVERY_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0
MOST_WATCHERS = 500


class Live:
    """Tells every watcher when the store's mark is another one, or the store is away, or back.

    A stream ends after `stream_seconds`, and the browser asks for the next one: a server that is to stop waits for its
    streams. None: it does not wait.
    """

    def __init__(self, store: Callable[[], Store], *, stream_seconds: float | None = None) -> None:
        self._store = store
        self._stream_seconds = math.inf if stream_seconds is None else stream_seconds
        self._watchers: set[asyncio.Queue[str]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._last: str | None = None

    @property
    def full(self) -> bool:
        """Whether nobody more can watch."""
        return len(self._watchers) >= MOST_WATCHERS

    async def news(self) -> AsyncIterator[str]:
        """One watcher's stream, as the lines of its events, until it is closed."""
        mine: asyncio.Queue[str] = asyncio.Queue(maxsize=8)
        self._watchers.add(mine)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield "retry: 1000\n\n"
            ends = time.monotonic() + self._stream_seconds
            if self._last is not None:
                yield self._last
            while (left := ends - time.monotonic()) > 0:
                try:
                    yield await asyncio.wait_for(mine.get(), min(KEEP_ALIVE_SECONDS, left))
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._watchers.discard(mine)

    async def _look(self) -> None:
        while self._watchers:
            try:
                event = f"event: mark\ndata: {await run_in_threadpool(lambda: self._store().mark())}\n\n"
            except PenstockError:
                event = "event: away\ndata: the store is away\n\n"
            if event != self._last:
                self._last = event
                for watcher in self._watchers:
                    if not watcher.full():  # whoever reads so slowly looks anew at the next event
                        watcher.put_nowait(event)
            await asyncio.sleep(EVERY_SECONDS)
        self._last = None
