"""Processes that a command which was ended leaves behind: they would work on without its slots (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Self

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_SECONDS = 0.02
_DYING_SECONDS = 5.0
"""So long we wait for one that was killed: it may be stuck in the kernel."""


def _prctl() -> Callable[[int, int], int] | None:
    try:
        function: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    except AttributeError:
        return None
    return function


_PRCTL = _prctl()  # looked up before any fork


def end_with_parent() -> None:
    """In a new child: be killed when its parent is killed. Takes no lock and imports nothing."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _children() -> frozenset[int]:
    """The processes whose parent is this one."""
    me, found = str(os.getpid()).encode(), set[int]()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:  # it may have ended meanwhile
            _state, parent, *_ = stat.read().rpartition(b")")[2].split()
            if parent == me:
                found.add(int(pid))
    return frozenset(found)


class Orphans:
    """Within it those below this process who lose their parent become its children.

    So whatever a command has begun can be found when it is ended, also behind a shell that is gone. What a command that
    ends by itself leaves running is left alone.
    """

    def __enter__(self) -> Self:
        self._adopts = _PRCTL is not None and _PRCTL(_PR_SET_CHILD_SUBREAPER, 1) == 0
        self._others: Collection[int] = _children() if self._adopts else ()
        return self

    def __exit__(self, *_: object) -> None:
        if _PRCTL is not None:
            _PRCTL(_PR_SET_CHILD_SUBREAPER, 0)

    def reap(self, command: int) -> None:
        """Bury those that are dead. `command` is somebody else's to bury."""
        self._living({command})

    def end(self, number: int, seconds: float) -> None:
        """Once the command itself is over: send each the signal, after so many seconds SIGKILL, until none lives."""
        deadline, told = time.monotonic() + seconds, set[int]()
        while (living := self._living(())) and time.monotonic() < deadline + _DYING_SECONDS:
            late = time.monotonic() >= deadline
            for pid in living if late else living - told:
                os.kill(pid, signal.SIGKILL if late else number)  # our own child: nobody else has its number yet
                told.add(pid)
            time.sleep(_LOOK_SECONDS)

    def _living(self, besides: Collection[int]) -> set[int]:
        living = set[int]()
        for pid in (_children() if self._adopts else frozenset()).difference(self._others, besides):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    living.add(pid)
        return living
