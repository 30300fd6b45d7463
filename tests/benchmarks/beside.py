"""Ours beside other limiters: same server, same numbers of clients, turns of theirs and ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy.engine import make_url

from benchmarks import ours
from benchmarks.cases import CONTENDED, ROOM, Run
from benchmarks.crew import Crew
from benchmarks.databases import Skipped
from benchmarks.report import Bar, Row, ratio_of_turns

SETTINGS = ((1, ROOM, 0.0), (8, ROOM, 0.0), (32, ROOM, 0.0), (32, CONTENDED, 0.0), (32, CONTENDED, 0.01))
"""Clients, limit, seconds held."""
AHEAD = Bar(1, "theirs")
FAR_AHEAD = Bar(20, "theirs")
TESTS = Path(__file__).parents[1]


class Peer:
    """The running script of another limiter."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.name: str = self._answer()["name"]

    def rate(self, **asked: float) -> float:
        """Cycles a second of one turn; `asked` as `benchmarks.peer` says."""
        assert self._process.stdin is not None
        print(json.dumps(asked), file=self._process.stdin)
        self._process.stdin.flush()
        return float(self._answer()["rate"])

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise Skipped("the peer's script ended")
        return json.loads(line)


def peer_case(peer_name: str, script: str, reach_for: Bar | None) -> Callable[[Run], list[Row]]:
    """Measure ours beside `benchmarks.peers.<script>`, run in that peer's own environment."""

    def measure(run: Run) -> list[Row]:
        if (python := run.peer_pythons.get(peer_name)) is None:
            raise Skipped(f"asked for by --with-{peer_name}, or --{peer_name}-python PATH")
        with run.databases.empty("postgresql") as theirs, _started(script, python, theirs) as peer:
            return [_beside(run, peer, *setting, reach_for) for setting in SETTINGS]

    return measure


def _beside(run: Run, peer: Peer, clients: int, capacity: int, hold_seconds: float, reach_for: Bar | None) -> Row:
    theirs: list[float] = []
    mine: list[float] = []
    errors: list[str] = []
    asked = {"clients": clients, "capacity": capacity, "hold_seconds": hold_seconds, "seconds": run.seconds}
    with run.databases.store("postgresql", {"pool": capacity}) as url, Crew(clients, preload=ours.PRELOAD) as crew:
        for _ in range(run.turns):
            theirs.append(peer.rate(**asked))
            turn = crew.turn(ours.cycles, run.seconds, warm_up=1, url=url, pools=["pool"], hold_seconds=hold_seconds)
            mine.append(turn.rate)
            errors += turn.errors
    ratio = ratio_of_turns(mine, theirs)
    return Row(
        case=f"{peer.name}, limit {capacity}, {clients} client{'s' * (clients > 1)}, hold {hold_seconds * 1000:g} ms",
        ours=f"{median(mine):.0f}/s",
        ratio=f"{ratio:.3g} theirs",
        bar=str(AHEAD),
        reach_for=str(reach_for or ""),
        met=AHEAD.met(ratio),
        reached=None if reach_for is None else reach_for.met(ratio),
        note=f"theirs {median(theirs):.0f}/s",
        errors=tuple(errors),
        figures={"ours": mine, "theirs": theirs},
    )


@contextmanager
def _started(script: str, python: str, url: str) -> Iterator[Peer]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{script}", plain],
            cwd=TESTS,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Peer(process)
        except Skipped:
            errors.seek(0)
            print(errors.read(), file=sys.stderr)
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the script ends with its input
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def made_environment(folder: Path, name: str, requirements: Sequence[str]) -> str:
    """The Python of a virtual environment with that other limiter, made at first use. Returns its path."""
    home = folder / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        (home / "complete").touch()
    return str(python)
