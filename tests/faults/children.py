"""Processes forked from the test: each says in a file of JSON lines what it does, and can be killed at any line."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

Event = dict[str, Any]


class Tell(Protocol):
    """Write one event at once, with the time by the monotonic clock, which all processes of a machine share."""

    def __call__(self, event: str, **facts: Any) -> None:
        """`event` is its name."""


class Child:
    """One process and what it has said."""

    def __init__(self, pid: int, path: Path) -> None:
        self.pid, self._path = pid, path
        self.died_at: float | None = None
        self.status: int | None = None

    @property
    def events(self) -> list[Event]:
        """What it has said so far."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def last(self) -> str | None:
        """The name of its latest event."""
        events = self.events
        return events[-1]["event"] if events else None

    def wait_for(self, event: str, seconds: float = 60.0) -> Event:
        """The first event of that name. An error if the process ended without it, or did not come to it in time."""
        until = time.monotonic() + seconds
        while True:
            ended = self.ended()
            for said in self.events:
                if said["event"] == event:
                    return said
                assert said["event"] != "failed", said["error"]
            assert not ended, f"it ended before {event}: {self.events}"
            assert time.monotonic() < until, f"it never came to {event}: {self.events}"
            time.sleep(0.005)

    def ended(self) -> bool:
        """Whether it is dead; looks."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status, self.died_at = status, time.monotonic()
        return self.status is not None

    def join(self, seconds: float = 60.0) -> None:
        """Wait for its end, which must be a good one."""
        until = time.monotonic() + seconds
        while not self.ended():
            assert time.monotonic() < until, f"it did not end: {self.events[-3:]}"
            time.sleep(0.005)
        assert self.status == 0, [said for said in self.events if said["event"] == "failed"] or self.status

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait for the death; nothing if it is dead."""
        if not self.ended():
            self.send(signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
            self.died_at = time.monotonic()


class Children:
    """Those of one test. The parent has loaded everything, so they are born warm; all are killed at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "children"
        self._folder.mkdir(exist_ok=True)
        self.all: list[Child] = []

    def bear(self, work: Callable[[Tell], object]) -> Child:
        """A new one, that does the work and ends."""
        path = self._folder / str(len(self.all))
        if pid := os.fork():
            self.all.append(Child(pid, path))
            return self.all[-1]
        code = 1
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def tell(event: str, **facts: Any) -> None:
            os.write(file, json.dumps({"event": event, "at": time.monotonic(), **facts}).encode() + b"\n")

        try:
            work(tell)
            code = 0
        except BaseException:
            tell("failed", error=traceback.format_exc())
        finally:
            os._exit(code)

    @property
    def living(self) -> list[Child]:
        """Those that have not ended."""
        return [child for child in self.all if not child.ended()]

    def intervals(self, begin: str = "begin", end: str = "end") -> list[tuple[float, float]]:
        """From each `begin` of each to its `end`; what was cut short ended with the process, or lasts on."""
        found = []
        for child in self.all:
            begun: dict[Any, float] = {}
            for said in child.events:
                if said["event"] == begin:
                    begun[said.get("thread")] = said["at"]
                elif said["event"] == end:
                    found.append((begun.pop(said.get("thread")), said["at"]))
            found += [(at, child.died_at or float("inf")) for at in begun.values()]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.all:
            with suppress(ProcessLookupError, ChildProcessError):
                child.kill()
