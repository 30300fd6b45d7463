"""Who held what from when to when, as the holders told it, and when those who were killed died."""

from __future__ import annotations

import json
import os
import selectors
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

LOOK_SECONDS = 0.02


@dataclass
class Hold:
    """One, by the machine's monotonic clock. `ended` is as its holder told it.

    `died` is when its process was killed or, where another than the witness killed it, when its end was seen.
    """

    host: str
    op: str
    run: str
    slots: dict[str, int]
    run_slots: dict[str, int]
    pid: int
    began: float
    ended: float | None = None
    died: float | None = None

    @property
    def until(self) -> float | None:
        """Its end: what a dead process held it held until its death. None while it lasts."""
        return self.ended if self.ended is not None else self.died

    def __str__(self) -> str:
        told = "" if self.ended is not None else ", killed"
        until = "now" if self.until is None else f"{self.until:.3f}"
        return f"{self.host} {self.run} {self.op} (process {self.pid}): {self.began:.3f} to {until}{told}"


@dataclass
class _Process:
    handle: int
    holds: list[Hold] = field(default_factory=list)
    killed_at: float | None = None


class Witness:
    """Reads what the holders write, and has a handle of each of their processes, which tells of its death."""

    def __init__(self, path: Path) -> None:
        self.holds: list[Hold] = []
        self._file = path.open("rb")
        self._rest = b""
        self._by_id: dict[str, Hold] = {}
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, name="witness", daemon=True)

    def living(self, host: str) -> list[Hold]:
        """Those of that host who hold now."""
        with self._lock:
            return [hold for hold in self._by_id.values() if hold.host == host and hold.until is None]

    def has_process(self, run: str) -> bool:
        """Whether a process that has ever held something of that run lives."""
        with self._lock:
            return any(hold.run == run for process in self._processes.values() for hold in process.holds)

    def last_death(self, run: str) -> float | None:
        """When a process that held something of that run died last."""
        with self._lock:
            return max((hold.died for hold in self.holds if hold.run == run and hold.died is not None), default=None)

    def kill(self, hold: Hold) -> float | None:
        """Kill -9 its process and wait for its death: when it was killed; None if it was dead.

        From then on it does nothing any more. Others (a `penstock run`, which gives its slots back at once) may see its
        death before it is seen here.
        """
        with self._lock:
            if (process := self._processes.get(hold.pid)) is None:
                return None
            killed_at = time.monotonic()
            try:
                signal.pidfd_send_signal(process.handle, signal.SIGKILL)
            except ProcessLookupError:
                return None
            process.killed_at = killed_at
        while hold.until is None:
            time.sleep(0.01)
        return killed_at

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for process in self._processes.values():
            os.close(process.handle)
        self._selector.close()
        self._file.close()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            gone = self._selector.select(0)
            now = time.monotonic()
            with self._lock:
                self._read()  # first: what a process told before its death counts
                for key, _ in gone:
                    self._bury(key.data, now)

    def _read(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for said in map(json.loads, lines):
            if said["event"] == "end":
                self._by_id[said["hold"]].ended = said["at"]
            else:
                self._begin(said)

    def _begin(self, said: dict[str, Any]) -> None:
        facts = (said["host"], said["op"], said["run"], said["slots"], said["run_slots"], said["pid"], said["at"])
        hold = self._by_id[said["hold"]] = Hold(*facts)
        self.holds.append(hold)
        if (process := self._processes.get(hold.pid)) is None:
            try:
                process = _Process(os.pidfd_open(hold.pid))
            except ProcessLookupError:
                hold.died = time.monotonic()
                return
            self._processes[hold.pid] = process
            self._selector.register(process.handle, selectors.EVENT_READ, hold.pid)
        process.holds.append(hold)

    def _bury(self, pid: int, now: float) -> None:
        process = self._processes.pop(pid)
        self._selector.unregister(process.handle)
        os.close(process.handle)
        for hold in process.holds:
            hold.died = now if process.killed_at is None else max(process.killed_at, hold.began)
