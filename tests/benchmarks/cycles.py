"""Acquire + release cycles a second, beside the floor: `python tests/benchmarks/cycles.py URL`.

The floor is what the same database does through SQLAlchemy Core for one INSERT and one DELETE, each durable in a
transaction of its own. Both are run in turns in one process; compare the ratio, not the figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import penstock
from penstock import changes
from penstock.config import Concurrency
from penstock.store.sql import SqlStore
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert

ROUNDS, CYCLES = 5, 100


def measure(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    for _ in range(CYCLES):
        call()
    return CYCLES / (time.perf_counter() - begun)


def main(url: str) -> None:
    store = SqlStore(url)
    store.upgrade()
    row = Table("penstock_benchmark", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))
    row.create(store._engine, checkfirst=True)

    def floor() -> None:
        with store._engine.begin() as connection:
            connection.execute(insert(row), {"id": 1})
        with store._engine.begin() as connection:
            connection.execute(delete(row).where(row.c.id == 1))

    with penstock.connect(url) as engine:
        version, _ = engine.configuration()
        block = Concurrency.model_validate({"pools": {"limits": {"benchmark": 10}}})
        changes.apply(engine, block, expected_version=version)

        def cycle() -> None:
            with engine.hold("benchmark"):
                pass

        floors, cycles = [], []
        for _ in range(ROUNDS):
            floors.append(measure(floor))
            cycles.append(measure(cycle))
    floor_rate, cycle_rate = sorted(floors)[ROUNDS // 2], sorted(cycles)[ROUNDS // 2]
    print(f"{store.url}: floor {floor_rate:.0f}/s, acquire + release {cycle_rate:.0f}/s, {cycle_rate / floor_rate:.2f}")
    row.drop(store._engine)
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
