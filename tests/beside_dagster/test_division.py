"""While Dagster still runs: the page's table of days walked with a real Dagster, and its op that takes our slots."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dagster import DagsterInstance
from dagster._cli import create_dagster_cli
from pages_read import COMING, blocks, rows
from penstock import connect
from penstock.cli import penstock as cli
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.lease import Lease

BEARS = 6
POOL = "warehouse"


class InDagster:
    """Steps that hold slots of Dagster's own pool."""

    def __init__(self, instance: DagsterInstance) -> None:
        self._storage = instance.event_log_storage
        self._held: list[str] = []
        self._steps = 0

    def set(self, command: str) -> None:
        done = CliRunner().invoke(create_dagster_cli(), command.split()[1:], standalone_mode=False)
        assert done.exception is None, done.output

    def fill(self) -> int:
        """Claim until one is refused; how many are held then."""
        while True:
            self._steps += 1
            step = f"step{self._steps}"
            if not self._storage.claim_concurrency_slot(POOL, "run", step).is_claimed:
                self._storage.free_concurrency_slot_for_step("run", step)
                return len(self._held)
            self._held.append(step)

    def end_until(self, limit: int) -> None:
        while len(self._held) > limit:
            self._storage.free_concurrency_slot_for_step("run", self._held.pop())


class Here:
    """Ops that hold slots of the store's pool."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine, self._url = engine, url
        self._held: list[Lease] = []

    def set(self, command: str) -> None:
        done = CliRunner().invoke(cli, ["--store", self._url, *command.split()[1:]], standalone_mode=False)
        assert done.exception is None, done.output

    def fill(self) -> int:
        """As Dagster's; for as long as there is a limit at all."""
        if not self._engine.configuration(fresh=True)[1].pools.limits:
            return 0
        while isinstance(decision := self._engine.try_acquire(self._engine.claim(POOL)), Granted):
            assert decision.lease is not None
            self._held.append(decision.lease)
        return len(self._held)

    def end_until(self, limit: int) -> None:
        while len(self._held) > limit:
            self._held.pop().release()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'penstock.db'}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    with connect(url) as engine:
        yield engine


def test_both_sides_together_never_have_more_than_the_warehouse_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, url: str
) -> None:
    """Each day one side shrinks, what it holds too much comes to its end, and then the other grows."""
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with DagsterInstance.get() as instance:
        dagster, here = InDagster(instance), Here(engine, url)
        held: list[tuple[int, int]] = []
        for day, in_dagster, of_ours in rows(COMING, "Say a warehouse bears six:"):
            dagster.set(in_dagster.strip("`"))
            dagster.end_until(int(in_dagster.split()[-1].strip("`")))
            assert dagster.fill() + here.fill() <= BEARS, day
            if of_ours:
                here.set(of_ours.strip("`"))
            held.append((dagster.fill(), here.fill()))
            assert sum(held[-1]) == BEARS, day
        dagster.end_until(0)
        here.end_until(0)
    assert held == [(6, 0), (4, 2), (3, 3), (0, 6)]


def test_an_op_of_dagsters_waits_in_the_stores_queue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine, url: str
) -> None:
    monkeypatch.setenv("PENSTOCK_STORE_URL", url)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (code,) = [block for block in blocks(COMING, "py") if "import penstock" in block]
    namespace: dict[str, Any] = {}
    exec(compile(re.sub(r"\.\.\.  # its work", "begun.set()", code), COMING.name, "exec"), namespace)
    begun = namespace["begun"] = threading.Event()
    Here(engine, url).set("penstock pools set warehouse 1")
    results: list[bool] = []
    with engine.hold(POOL, op_id="airflow's"):
        job = threading.Thread(target=lambda: results.append(namespace["nightly"].execute_in_process().success))
        job.start()
        deadline = time.monotonic() + 60
        while not (waiters := engine.status()["waiters"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [row["op_id"] for row in waiters] == ["dagster load"]
        assert not begun.is_set()
    job.join(60)
    assert results == [True]
    assert begun.is_set()
    assert not engine.status()["leases"]
