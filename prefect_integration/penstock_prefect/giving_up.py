"""When nobody wants any more what waits for slots: its flow was torn down, its runner or its process gave it up."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable

from penstock_prefect import facts

RUN_LOOK_SECONDS = 2.0


class Ended(threading.Event):
    """Set once that is so. `flow_ended` is set when the limited flow around is torn down.

    `run_lives` is asked now and then by what waits in a process pool of its flow: nothing else tells it there. What a
    task worker has taken over goes on by itself.
    """

    def __init__(self, flow_ended: threading.Event | None, run_lives: Callable[[], bool] | None = None) -> None:
        super().__init__()
        self._flow_ended, self._run_lives = flow_ended, run_lives
        self._elsewhere = facts.is_elsewhere()
        self._parent = multiprocessing.parent_process() if self._elsewhere else None
        self.is_io = self._parent is not None and run_lives is not None
        """Whether `is_set` may ask the store."""
        self._look_at = time.monotonic() + RUN_LOOK_SECONDS

    def is_set(self) -> bool:
        """See the class."""
        if not super().is_set() and self._finds_out():
            self.set()
        return super().is_set()

    def _finds_out(self) -> bool:
        if self._flow_ended is not None and self._flow_ended.is_set():
            return True
        if not self._elsewhere:
            return facts.cancelled_by_runner()
        if self._parent is None:
            return False
        if not self._parent.is_alive():
            return True
        if self._run_lives is None or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + RUN_LOOK_SECONDS
        return not self._run_lives()


def left_behind() -> bool:
    """Whether this runs in a process pool of its flow, which ends with it."""
    return facts.is_elsewhere() and multiprocessing.parent_process() is not None


def torn_down() -> asyncio.CancelledError:
    """What Prefect itself raises in a task whose runner was cancelled: the task run ends as Crashed."""
    return asyncio.CancelledError("The flow ended while this waited for slots")
