"""Starting the processes of a host and being sure that none is left: each in a group and with a log of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


class HostFailed(RuntimeError):
    """A host did not do what it was started for; the message ends with the tail of its logs."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Processes:
    """Child processes with their logs in one folder; `stop` ends them all, with everything they started."""

    folder: Path
    environment: Mapping[str, str]
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _finite: set[str] = field(default_factory=set)
    _killed: list[subprocess.Popen[bytes]] = field(default_factory=list)  # what they started may live on

    def start(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one, with `environment` added to that of all; its output goes to `<folder>/<name>.log`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log_file(name).open("ab") as log:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **(environment or {})},
                cwd=self.folder,
                start_new_session=True,
            )
        self._children[name] = child
        return child

    def start_to_end(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """As `start`, for one that is meant to end by itself: `wait_for` does not mind when it has."""
        child = self.start(name, command, environment)
        self._finite.add(name)
        return child

    def run(self, name: str, command: Sequence[str | Path], *, seconds: float) -> str:
        """Run one to its end and return its standard output. Raises HostFailed on failure or after `seconds`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=dict(self.environment),
                cwd=self.folder,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HostFailed(f"{name}: not done within {seconds:g} s") from error
        if done.returncode != 0:
            raise HostFailed(f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def kill(self, name: str, *, alone: bool = False) -> None:
        """SIGKILL to one and all that it started; `alone`: its children live on, until `stop`."""
        child = self._children.pop(name)
        if alone:
            child.kill()
        else:
            _signal_group(child, signal.SIGKILL)
        child.wait()
        self._killed.append(child)

    def terminate(self, name: str) -> subprocess.Popen[bytes]:
        """SIGTERM to one alone, which ends in its own time: wait for the child that is returned."""
        child = self._children.pop(name)
        child.terminate()
        self._killed.append(child)
        return child

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        """Wait until the condition holds. Raises HostFailed when a child has ended or `seconds` are over."""
        deadline = time.monotonic() + seconds
        while not condition():
            for name, child in self._children.items():
                if name not in self._finite and child.poll() is not None:
                    raise HostFailed(f"{name} ended with {child.returncode} before {what}:\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise HostFailed(f"{what}: not within {seconds:g} s\n" + "\n".join(map(self.tail, self._children)))
            time.sleep(0.2)

    def pid(self, name: str) -> int:
        """Of the child of that name."""
        return self._children[name].pid

    def log_file(self, name: str) -> Path:
        """Where a child writes."""
        return self.folder / f"{name}.log"

    def tail(self, name: str, *, lines: int = 40) -> str:
        """The end of a child's log, headed by its name."""
        text = self.log_file(name).read_text(errors="replace") if self.log_file(name).exists() else ""
        return f"--- {name}\n" + "\n".join(text.splitlines()[-lines:])

    def stop(self, *, seconds: float = 10.0) -> None:
        """SIGTERM to every group, SIGKILL to what is left after `seconds`."""
        for child in self._children.values():
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.wait()
        for child in self._killed:
            _signal_group(child, signal.SIGKILL)
        self._children.clear()
        self._killed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
