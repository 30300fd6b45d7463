"""Defects of Dagster's slots that must not come along, each by the name it has in our list."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import penstock
import pytest
from claimers import claim_once
from penstock import changes
from penstock.config import Concurrency
from penstock.decision import Granted, Refused
from penstock.engine import Engine

ROUNDS = 15
CLAIMERS = 8


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("limit", [1, 3])
def test_dagster_defect_1_simultaneous_claims_exceed_the_limit(store_url: str, limit: int) -> None:
    """Dagster on PostgreSQL: limit 1 passed in 18 of 40 rounds of 8 claimers, limit 3 in 37 of 40."""
    context = multiprocessing.get_context("spawn")
    with penstock.connect(store_url) as engine, context.Manager() as manager:
        changes.apply(engine, Concurrency.model_validate({"pools": {"default_limit": limit}}), expected_version=0)
        with ProcessPoolExecutor(CLAIMERS, mp_context=context) as workers:
            for number in range(ROUNDS):
                barrier = manager.Barrier(CLAIMERS)
                asked = [workers.submit(claim_once, store_url, f"pool{number}", barrier) for _ in range(CLAIMERS)]
                assert sum(future.result(120) for future in asked) == limit


def test_dagster_defect_2_default_limit_holds_from_the_first_look_at_a_pool(engine: Engine, configure: Any) -> None:
    """Dagster: three runs of three passed a default limit of 1 when the pool had never been seen."""
    configure(pools={"default_limit": 1})
    assert isinstance(engine.try_acquire(engine.claim("never_seen_before")), Granted)
    assert isinstance(engine.try_acquire(engine.claim("never_seen_before")), Refused)
    assert isinstance(engine.try_acquire(engine.claim("never_seen_before")), Refused)


def test_dagster_defect_2_at_once(store: Any, new_engine: Any, configure: Any) -> None:
    """The first claims of a pool come from several threads at once: one wins, and the default holds for all."""
    from concurrent.futures import ThreadPoolExecutor

    configure(pools={"default_limit": 1})
    engines = [new_engine() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for number in range(10):
            pool = f"first{number}"
            decisions = list(threads.map(lambda e, p=pool: e.try_acquire(e.claim(p)), engines))
            assert sum(isinstance(decision, Granted) for decision in decisions) == 1
