"""The command line in this process: as quick as a call, with the exit codes and texts of `main`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from penstock.cli import main

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `penstock` on the test's store without a terminal; `answer` is what is typed at one."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def run(*arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["penstock", "--store", store_url, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return subprocess.CompletedProcess(list(arguments), exit_.value.code, out, err)

    return run


@pytest.fixture
def as_json(cli: Cli) -> Callable[..., Any]:
    """Run `penstock … --json` and read what it prints."""

    def run(*arguments: str) -> Any:
        done = cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
