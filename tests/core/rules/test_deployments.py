"""Two installations of a host never go by one name: their runs would be taken for each other's."""

from __future__ import annotations

import pytest
from penstock.engine import Engine
from penstock.errors import DeploymentConflict
from situations import CALM, Configure, NewEngine, granted, held

HERE, THERE = "https://here.example/api", "https://there.example/api"


def airflow(new_engine: NewEngine, fingerprint: str | None, deployment: str = "prod") -> Engine:
    return new_engine(host="airflow", deployment=deployment, fingerprint=fingerprint, settings=CALM)


def test_a_second_installation_of_one_name_is_refused_with_the_remedy(new_engine: NewEngine) -> None:
    first = airflow(new_engine, HERE)
    with first.hold("a"):
        second = airflow(new_engine, THERE)
        with pytest.raises(DeploymentConflict, match=r"airflow/prod is https://here\.example/api already"):
            second.acquire(second.claim("a"))
        with pytest.raises(DeploymentConflict, match="name"):
            second.acquire(second.claim("a"))
        assert held(first, "pool:a") == 1


def test_the_same_installation_comes_back_under_its_name(new_engine: NewEngine) -> None:
    for _ in range(2):
        engine = airflow(new_engine, HERE)
        with engine.hold("a"):
            assert held(engine, "pool:a") == 1


def test_another_name_or_another_host_is_another_installation(new_engine: NewEngine) -> None:
    for engine in (
        airflow(new_engine, HERE),
        airflow(new_engine, THERE, "staging"),
        new_engine(host="prefect", deployment="prod", fingerprint=THERE, settings=CALM),
    ):
        with engine.hold("a"):
            pass


def test_one_without_a_fingerprint_is_not_checked(new_engine: NewEngine) -> None:
    for fingerprint in (HERE, None):
        engine = airflow(new_engine, fingerprint)
        with engine.hold("a"):
            pass


def test_runs_of_the_same_id_in_two_installations_are_two_runs(new_engine: NewEngine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 2})
    engines = [airflow(new_engine, HERE), airflow(new_engine, THERE, "staging")]
    leases = [granted(engine.request(engine.run_claim("etl/1")).step()) for engine in engines]
    assert leases[0].claim_id != leases[1].claim_id
    assert held(engines[0], "runs") == 2
    leases[0].release()
    assert held(engines[0], "runs") == 1
