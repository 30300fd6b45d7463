"""No connection may be open to an SQLite file while its process forks: the child would inherit locks that it has not.

SQLite keeps what a process has locked in that process's memory. A child that opens the file anew still finds the
parent's locks there, waits for ever for one of them, or believes to have another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from weakref import WeakSet

FORK_PATIENCE_SECONDS = 5.0
"""How long a fork waits for the transactions under way, each of which has its own bound."""


class ForkGate:
    """Entered for each use of a connection. A fork waits until nobody is inside, closes them all, and then goes on."""

    def __init__(self, close_idle: Callable[[], None]) -> None:
        self._close_idle = close_idle
        self._thread = threading.local()
        self.reopen()
        _gates.add(self)

    def __enter__(self) -> None:
        depth = getattr(self._thread, "depth", 0)
        with self._changed:
            if not depth:
                self._changed.wait_for(lambda: not self._forking)
            self._inside += 1
        self._thread.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._thread.depth -= 1
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in, wait until all are out, close what is open."""
        with self._changed:
            self._forking += 1
            self._changed.wait_for(lambda: not self._inside, FORK_PATIENCE_SECONDS)
        self._close_idle()

    def open(self) -> None:
        """In the parent, go on."""
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def reopen(self) -> None:
        """In the child, begin anew."""
        self._changed, self._inside, self._forking = threading.Condition(), 0, 0  # so many threads fork


_gates: WeakSet[ForkGate] = WeakSet()
_mine = threading.local()  # `shut`: the gates that the fork of this thread has shut


def _shut_all() -> None:
    _mine.shut = []
    for gate in list(_gates):
        _mine.shut.append(gate)
        gate.shut()


def _open_again() -> None:
    """No others: one that another thread has made meanwhile was never shut."""
    for gate in _mine.__dict__.pop("shut", ()):
        gate.open()


def _reopen_all() -> None:
    for gate in list(_gates):
        gate.reopen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_shut_all, after_in_parent=_open_again, after_in_child=_reopen_all)
