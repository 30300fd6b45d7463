"""Processes that race for slots: forked from one warm parent, which kills and stops them at random and replaces them.

`python racers.py RACE` where RACE is a JSON object (see `Race`). Each racer keeps a file of JSON lines, each written
at once: what it held by its own monotonic clock, with the fences. The parent prints who was killed and stopped when.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import penstock
from penstock import ClaimError, LeaseLost, StoreUnavailable, WaitTimeout
from penstock.connection import connect
from penstock.engine import Engine
from penstock.settings import Settings
from penstock.store.contract import Owner, Result


@dataclass(frozen=True)
class Race:
    """How long with how many; `long_stop_seconds` outlasts the TTL and the grace."""

    url: str
    folder: str
    seed: int
    processes: int
    seconds: float
    ttl_seconds: float
    long_stop_seconds: float
    kill_pause_seconds: tuple[float, float]


class Racer:
    """One process: claims, holds, releases until the race is over."""

    def __init__(self, engine: Engine, path: Path, rng: random.Random) -> None:
        self._engine, self._rng = engine, rng
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._name, self._rounds = path.name, 0

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            self._rounds += 1
            time.sleep(self._rng.uniform(0, 0.3))  # so that not everybody is in a queue, where a kill costs little
            try:
                self._round()
            except WaitTimeout:
                self._write(event="timeout")
            except StoreUnavailable:  # as it gave up: its heartbeat ends what it does not answer for any more
                self._write(event="away")

    def _round(self) -> None:
        rng, engine = self._rng, self._engine
        wants: dict[str, int] = rng.choice(
            [
                {"one": 1},
                {"three": rng.randint(1, 2)},
                {"five": rng.randint(1, 3)},
                {"three": rng.randint(1, 2), "five": rng.randint(1, 2)},
                {"one": 1, "three": 1, "five": 2},
            ]
        )
        priority = rng.randint(-3, 3)
        if rng.random() < 0.7:
            self._hold(engine.claim(wants, priority=priority))
            return
        run_id = f"{self._name}-{self._rounds}"

        def op() -> None:
            with suppress(ClaimError, WaitTimeout, StoreUnavailable):  # lost with its run, or not admitted in time
                self._hold(engine.claim("three", run_id=run_id, in_run=True, priority=priority))

        self._hold(engine.run_claim(run_id, tags={"team": "x"}, priority=priority), op)

    def _hold(self, claim: Any, inside: Callable[[], None] | None = None) -> None:
        try:
            lease = self._engine.acquire(claim, wait_timeout_seconds=20)
        except LeaseLost:
            self._write(event="ended")
            return
        told, told_at = threading.Event(), list[float]()

        def tell(_: object) -> None:
            told_at.append(time.monotonic())
            told.set()

        lease.on_lost.append(tell)
        begun = time.monotonic()
        if lost := lease.lost:
            self._write(event="stale", fences=lease.fences)
        else:
            self._write(event="begin", at=begun, fences=lease.fences, waited=lease.waited_seconds, claim=lease.claim_id)
            if inside is None:
                told.wait(self._rng.uniform(0.005, 0.1))
            else:
                inside()
            ended = time.monotonic()
            lost = lease.lost
            self._write(event="end", at=ended, claim=lease.claim_id, lost=lost)
        if lost:
            told.wait(5)
            self._write(event="lost", claim=lease.claim_id, told=told_at, **self._as_stale(lease))
        try:
            lease.release()
        except StoreUnavailable:
            self._write(event="unreleased")

    def _as_stale(self, lease: Any) -> dict[str, Any]:
        """What the store still takes from a holder that has lost its lease, and when it was asked."""
        store, at = self._engine.store, time.monotonic()
        with suppress(StoreUnavailable):
            outcome = store.touch(lease.claim_id, (), version=-1, owner=Owner(lease.session_id))
            taken = {
                "beat": store.beat(lease.session_id, lambda: [lease.claim_id]),
                "acknowledged": outcome.result is Result.HELD,
                "handed": store.hand_over(lease.claim_id, lease.session_id, ticket_seconds=1),
                "released": store.release(lease.claim_id, lease.session_id),
            }
            return {"asked": at, "taken": [name for name, yes in taken.items() if yes]}
        return {"asked": at, "taken": []}

    def _write(self, **event: Any) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")


@dataclass
class Nursery:
    """The warm parent. It has no threads and no connection, so that a fork is safe."""

    race: Race
    living: dict[int, str] = field(default_factory=dict)
    stopped: dict[int, tuple[float, float]] = field(default_factory=dict)  # pid → since, until
    dead_at: dict[str, float] = field(default_factory=dict)
    stops: list[tuple[str, float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    born: int = 0

    def run(self) -> dict[str, Any]:
        rng, race = random.Random(self.race.seed), self.race
        until = time.monotonic() + race.seconds
        kill_at, stop_at = time.monotonic() + 1, time.monotonic() + 1.5
        while (now := time.monotonic()) < until:
            self._reap()
            while len(self.living) < race.processes:
                self._bear(until)
            if now >= kill_at:
                kill_at = now + rng.uniform(*race.kill_pause_seconds)
                os.kill(victim := self._victim(rng), signal.SIGKILL)
                self.killed.append(name := self.living[victim])
                self.dead_at[name] = time.monotonic()  # it may take a while until it is reaped
            if now >= stop_at and len(self.stopped) < 3:
                stop_at = now + rng.uniform(0.8, 2.4)
                pid = self._victim(rng)
                os.kill(pid, signal.SIGSTOP)
                seconds = race.long_stop_seconds if rng.random() < 0.6 else 0.3
                since = time.monotonic()  # not `now`: forks took their time since, in which it may have begun to hold
                self.stopped[pid] = (since, since + seconds)
            self._wake(now)
            time.sleep(0.01)
        self._wake(float("inf"))
        patience = time.monotonic() + 60
        while self.living and time.monotonic() < patience:
            self._reap()
            time.sleep(0.02)
        for pid, name in self.living.items():
            self.failed.append(f"{name} did not end")
            os.kill(pid, signal.SIGKILL)
        return {"killed": self.killed, "dead_at": self.dead_at, "stops": self.stops, "failed": self.failed}

    def _victim(self, rng: random.Random) -> int:
        """Anybody, or one of those who hold something now."""
        moving = [pid for pid in self.living if pid not in self.stopped]
        holding = [pid for pid in moving if self._holds(self.living[pid])]
        return rng.choice(holding if holding and rng.random() < 0.6 else moving)

    def _holds(self, name: str) -> bool:
        with suppress(OSError, IndexError):
            last: str = (Path(self.race.folder) / name).read_text().splitlines()[-1]
            return json.loads(last)["event"] == "begin"
        return False

    def _bear(self, until: float) -> None:
        name, self.born = str(self.born), self.born + 1
        if pid := os.fork():
            self.living[pid] = name
            return
        code = 1
        try:
            _race(self.race, name, until)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _wake(self, now: float) -> None:
        for pid, (since, until) in list(self.stopped.items()):
            if now >= until:
                del self.stopped[pid]
                os.kill(pid, signal.SIGCONT)
                self.stops.append((self.living[pid], since, time.monotonic()))

    def _reap(self) -> None:
        while self.living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            name, at = self.living.pop(pid), time.monotonic()
            self.dead_at.setdefault(name, at)
            if pid in self.stopped:
                self.stops.append((name, self.stopped.pop(pid)[0], at))
            if status not in (0, signal.SIGKILL):
                self.failed.append(f"{name} ended with {status}")


def _race(race: Race, name: str, until: float) -> None:
    with _connected(race) as engine:
        if int(name) % 2:  # as behind a pooler: this one hears of nothing and polls
            engine.store.listen = lambda _: None  # type: ignore[method-assign]
        Racer(engine, Path(race.folder) / name, random.Random(f"{race.seed}/{name}")).run(until)


def _connected(race: Race) -> Engine:
    settings = Settings(session_ttl_seconds=race.ttl_seconds, poll_max_seconds=0.2)  # more leases in the time
    while True:
        with suppress(StoreUnavailable):  # an SQLite file, while somebody is stopped inside of a transaction
            return penstock.connect(race.url, settings=settings)


if __name__ == "__main__":
    given = Race(**json.loads(sys.argv[1]))
    connect(given.url, lazy=True)  # loads everything that a racer needs, and opens nothing
    print(json.dumps(Nursery(given).run()))
