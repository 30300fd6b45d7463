"""The pages' examples: files, and commands with what they print, found in the text and run as they stand there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from penstock.cli import main

ROOT = Path(__file__).parents[1]
EXIT = '; echo "exit $?"'
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from one run to the next, and from one machine to another.
VARYING = [
    (re.compile(pattern), word)
    for pattern, word in (
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"\d+(\.\d+)? (ms|s|min|h)( \d+ (s|min))?\b", "SPAN"),
        (r"SPAN (ahead of|behind) this", "SPAN beside this"),
        (r'(_seconds": )[\d.]+', r"\1SECONDS"),
        (r"pid \d+ on [^,\s]+", "PROCESS"),
        (r"process/process +\S+ +\d+ +TIME", "process/process PROCESS TIME"),
        (r"by \S+ from \S+ at", "by WHO from WHERE at"),
        (r"SQLite [\d.]+", "SQLite"),
        (r"(schema|works with) \d{4}", r"\1 REVISION"),
        (r"from penstock [\d.]+", "from penstock"),
        (r"sessions: \d+ beat", "sessions: N beat"),
        (r" +", " "),
    )
]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, in order."""
    return [body for kind, body in BLOCK.findall((ROOT / page).read_text()) if kind == language]


@dataclass(frozen=True, slots=True)
class Example:
    """A command as it is typed, and the lines that it prints."""

    command: str
    output: list[str]


def examples(page: str) -> list[Example]:
    """The lines of the console blocks that begin with `$ `, each with what stands below it."""
    found: list[Example] = []
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Example(line[2:], []))
            else:
                found[-1].output.append(line)
    return found


def plain(lines: list[str]) -> list[str]:
    """The lines with what varies named, and without what a terminal does not show."""
    for pattern, word in VARYING:
        lines = [pattern.sub(word, line) for line in lines]
    return [line.strip() for line in lines]


def rewrite(page: str, shown: list[tuple[Example, list[str]]]) -> None:
    """Put under each command of the page what it printed."""
    path, parts, outputs = ROOT / page, [], iter(shown)
    in_console = False
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            in_console = line == "```console"
            parts.append(line)
        elif not in_console:
            parts.append(line)
        elif line.startswith("$ "):
            parts += [line, *(each.rstrip() for each in next(outputs)[1])]
    path.write_text("\n".join(parts) + "\n")


class Shell:
    """Runs commands one by one in a folder that they know as `/srv`; what goes on behind (`&`) ends with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._behind: list[subprocess.Popen[str]] = []
        bin_folder = Path(sys.executable).parent
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self.environment = kept | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}

    def run(self, command: str) -> list[str]:
        """What it prints, errors too. An `export` holds for those that follow."""
        command = command.replace("/srv", str(self._folder))
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = value
            return []
        if command.startswith("penstock ") and not command.startswith("penstock run ") and " | " not in command:
            printed = self._here(command)
        else:
            printed = self._in_a_process(command)
        return printed.replace(str(self._folder), "/srv").splitlines()

    def _here(self, command: str) -> str:
        """In this process, which has loaded already what each new one would load again."""
        words = shlex.split(command.removesuffix(EXIT))
        printed = io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "argv", words),
            mock.patch.object(sys, "stdin", io.StringIO()),
            contextlib.chdir(self._folder),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            try:
                main()
            except SystemExit as ended:
                if command.endswith(EXIT):
                    print(f"exit {ended.code}")
        return printed.getvalue()

    def _in_a_process(self, command: str) -> str:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        ).stdout

    def begin(self, command: str, begun: Callable[[], bool]) -> None:
        """Start it and come back when it has begun."""
        child = subprocess.Popen(
            ["bash", "-c", command.removesuffix("&")],
            cwd=self._folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._behind.append(child)
        deadline = time.monotonic() + 60
        while not begun():
            assert time.monotonic() < deadline, f"it did not begin: {command}"
            assert child.poll() is None, f"it ended: {command}"
            time.sleep(0.05)

    def close(self) -> None:
        """End what still runs behind."""
        for child in self._behind:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextlib.contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """A shell in that folder."""
    opened = Shell(folder)
    try:
        yield opened
    finally:
        opened.close()
