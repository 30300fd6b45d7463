"""Client processes that take turns: the floor, ours, the floor, ours. Standard library only, so peers can use it, too.

A *work* is a context manager that connects and yields one cycle to repeat. A turn opens it in every client, lets all of
them begin at the same moment, and closes it again: what is not measured holds no connection and runs no thread.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

Cycle = Callable[[], object]
Work = Callable[..., AbstractContextManager[Cycle]]
ANSWER_SECONDS = 120.0
ERRORS_MOST = 10


class ClientFailed(Exception):
    """A client met an error; its traceback is the message."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the clients did at once: each one's cycles a second, what its cycles returned, what they raised."""

    rates: tuple[float, ...]
    notes: tuple[tuple[Any, ...], ...]
    errors: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Cycles a second of all clients together."""
        return sum(self.rates)


class Crew:
    """`clients` processes, forked from a warm server that has loaded the `preload` modules and nothing else."""

    def __init__(self, clients: int, *, preload: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self.clients = clients
        self._pipes: list[Connection] = []
        self._processes = []
        for client in range(clients):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(client, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def turn(self, work: Work, seconds: float, *, warm_up: int = 6, **arguments: Any) -> Turn:
        """Every client repeats the work's cycle for that long, after `warm_up` cycles that do not count.

        Six, because psycopg prepares a statement at its sixth execution.
        """
        for pipe in self._pipes:
            pipe.send((work, arguments, seconds, warm_up))
        self._answers()
        begin_at = time.monotonic() + 0.02
        for pipe in self._pipes:
            pipe.send(begin_at)
        tallies = self._answers(seconds)
        for pipe in self._pipes:
            pipe.send(None)  # all have finished: only now may anybody close, which may write
        self._answers()
        rates, notes, errors = zip(*tallies, strict=True)
        return Turn(rates, notes, tuple(error for several in errors for error in several))

    def close(self) -> None:
        """End the clients."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self, seconds: float = 0.0) -> list[Any]:
        answers = []
        until = time.monotonic() + seconds + ANSWER_SECONDS
        for client, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, until - time.monotonic())):
                raise ClientFailed(f"client {client} did not answer within {ANSWER_SECONDS:g} s")
            try:
                failed, answer = pipe.recv()
            except EOFError:
                raise ClientFailed(f"client {client} ended") from None
            if failed:
                raise ClientFailed(f"client {client}:\n{answer}")
            answers.append(answer)
        return answers


def _serve(client: int, pipe: Connection) -> None:
    while True:
        try:
            work, arguments, seconds, warm_up = pipe.recv()
        except EOFError:
            return
        try:
            _take_turn(pipe, work(client=client, **arguments), seconds, warm_up)
        except Exception:
            with suppress(OSError):  # the others' turn has been called off meanwhile
                pipe.send((True, traceback.format_exc()))
            return


def _take_turn(pipe: Connection, opened: AbstractContextManager[Cycle], seconds: float, warm_up: int) -> None:
    with opened as cycle:
        for _ in range(warm_up):
            with suppress(Exception):  # what fails every time fails in the turn, too
                cycle()
        pipe.send((False, None))
        begin_at = pipe.recv()
        time.sleep(max(0.0, begin_at - time.monotonic()))
        notes: list[object] = []
        errors: list[str] = []
        cycles, begun = 0, time.monotonic()
        until = begun + seconds
        while (now := time.monotonic()) < until:
            try:
                note = cycle()
            except Exception as error:  # one lost cycle of thousands is a figure to report, not the end of the run
                errors.append(f"{type(error).__name__}: {error}")
                if len(errors) > ERRORS_MOST:
                    raise
                continue
            cycles += 1
            if note is not None:
                notes.append(note)
        pipe.send((False, (cycles / (now - begun), tuple(notes), tuple(errors))))
        pipe.recv()
    pipe.send((False, None))
