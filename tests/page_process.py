"""Real processes around the page: `penstock ui` that serves it, `penstock run` that hold and wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

from page_served import TOKEN

PENSTOCK = [sys.executable, "-m", "penstock"]
Run = Callable[..., "subprocess.Popen[str]"]


def _ended(child: subprocess.Popen[str]) -> None:
    """Kill it with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


@contextlib.contextmanager
def ui(store_url: str, *options: str) -> Iterator[str]:
    """`penstock ui`, with a token for Ann, while the block runs: its address, without a slash at its end."""
    child = subprocess.Popen(
        [*PENSTOCK, "--store", store_url, "ui", "--port", "0", *options],
        env=os.environ | {"PENSTOCK_UI_TOKEN": f"ann:{TOKEN}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        told = child.stdout.readline()
        assert told.startswith("http://"), told
        yield told.split()[0].rstrip("/")
    finally:
        _ended(child)


@contextlib.contextmanager
def runs(store_url: str) -> Iterator[Run]:
    """Starts `penstock run` with these options around a command without an end; all are gone after the block."""
    children: list[subprocess.Popen[str]] = []

    def run(*options: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [*PENSTOCK, "--store", store_url, "run", *options, "--", "sleep", "1000000"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        return child

    try:
        yield run
    finally:
        for child in children:
            _ended(child)
