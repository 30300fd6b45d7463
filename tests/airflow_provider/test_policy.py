"""The cluster policy: it adds to what DAG authors wrote, costs next to nothing, and cannot fail."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from typing import Any

import airflow_versions
import pytest
from penstock_airflow import gate, installation, policy, runs


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation with a store; nobody connects to it."""
    monkeypatch.setenv("AIRFLOW__PENSTOCK__STORE_URL", "sqlite:////nowhere/penstock.db")
    installation.store_is_configured.cache_clear()
    yield
    installation.store_is_configured.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, in order; gate and end of run only say so."""
    called: list[str] = []
    monkeypatch.setattr(gate, "enter", lambda context: called.append("gate"))
    monkeypatch.setattr(runs, "end", lambda context: called.append("end of run"))
    return called


def operator(**arguments: Any) -> Any:
    from airflow.providers.standard.operators.python import PythonOperator

    return PythonOperator(task_id="task", python_callable=print, **arguments)


def test_a_task_without_a_hook_gets_the_gate(calls: list[str]) -> None:
    task = operator()
    policy.task_policy(task)
    task._pre_execute_hook({})
    assert calls == ["gate"]


def test_a_users_hook_runs_after_the_gate(calls: list[str]) -> None:
    def hook(context: Any) -> None:
        """The user's."""
        calls.append("hook")

    task = operator(pre_execute=hook)
    policy.task_policy(task)
    policy.task_policy(task)
    assert task._pre_execute_hook.__doc__ == "The user's."
    task._pre_execute_hook({})
    assert calls == ["gate", "hook"]


def test_a_users_generator_stays_one(calls: list[str]) -> None:
    def hook(context: Any) -> Iterator[str]:
        calls.append("hook")
        yield "metadata"

    task = operator(pre_execute=hook)
    policy.task_policy(task)
    assert inspect.isgeneratorfunction(task._pre_execute_hook)
    assert list(task._pre_execute_hook({})) == ["metadata"]
    assert calls == ["gate", "hook"]


@pytest.mark.parametrize("with_hook", [False, True])
def test_a_mapped_task_hands_the_gate_to_its_instances(calls: list[str], with_hook: bool) -> None:
    from airflow.providers.standard.operators.python import PythonOperator
    from airflow.sdk import DAG

    hook = {"pre_execute": lambda context: calls.append("hook")} if with_hook else {}
    with DAG("dag", schedule=None):
        mapped = PythonOperator.partial(task_id="task", python_callable=print, **hook).expand(op_args=[[1], [2]])
    policy.task_policy(mapped)
    instance = mapped.unmap({"op_args": [1]})
    instance._pre_execute_hook({})
    assert calls == (["gate", "hook"] if with_hook else ["gate"])


def test_a_stub_under_limits_is_refused_wherever_they_were_said(calls: list[str]) -> None:
    """Of a function under `limited`, and of what stands in a limited group, only a finished DAG tells what it is."""
    from airflow.providers.standard.decorators.stub import stub
    from airflow.sdk import DAG, TaskGroup
    from penstock_airflow import limited

    def extract() -> None: ...

    with DAG("dag", schedule=None):
        free, below = stub(extract)().operator, stub(limited("database")(extract))().operator
        with limited("database")(TaskGroup("group")):
            inside, exempt = stub(extract)().operator, limited(exempt=True)(stub(extract)().operator)
    for task in (below, inside):
        with pytest.raises(TypeError, match=rf"{task.task_id} is a @task\.stub"):
            policy.task_policy(task)
    for task in (free, exempt):
        policy.task_policy(task)


@pytest.mark.parametrize("kind", ["success", "failure"])
@pytest.mark.parametrize("shape", ["none", "one", "many"])
def test_a_users_dag_callbacks_are_kept(calls: list[str], kind: str, shape: str) -> None:
    from airflow.sdk import DAG

    def user(context: Any) -> None:
        calls.append("user")

    given = {"none": None, "one": user, "many": [user, user]}[shape]
    dag = DAG("dag", schedule=None, **{f"on_{kind}_callback": given})
    policy.dag_policy(dag)
    policy.dag_policy(dag)
    for callback in getattr(dag, f"on_{kind}_callback"):
        callback({})
    assert calls == ["end of run"] + {"none": [], "one": ["user"], "many": ["user", "user"]}[shape]
    assert getattr(dag, f"has_on_{kind}_callback")


def test_the_serialized_dag_shows_the_users_hook_as_before(calls: list[str]) -> None:
    from airflow.sdk import DAG

    def hook(context: Any) -> None:
        calls.append("hook")

    with DAG("dag", schedule=None) as dag:
        task = operator(pre_execute=hook)
    before = airflow_versions.serialized_dag(dag)
    policy.task_policy(task)
    assert airflow_versions.serialized_dag(dag) == before


def test_without_a_store_nothing_is_touched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from airflow.sdk import DAG

    monkeypatch.delenv("AIRFLOW__PENSTOCK__STORE_URL")
    monkeypatch.delenv("PENSTOCK_STORE_URL", raising=False)
    installation.store_is_configured.cache_clear()
    caplog.set_level("INFO", logger="penstock.airflow")
    task, dag = operator(), DAG("dag", schedule=None)
    for _ in range(3):
        policy.task_policy(task)
        policy.dag_policy(dag)
    assert task._pre_execute_hook is None
    assert dag.on_success_callback is None
    assert [record.message for record in caplog.records] == [
        "Penstock is installed but inactive: no [penstock] store_url or conn_id is set: nothing is limited"
    ]


def test_airflow_loads_it_as_a_plugin_of_policies(calls: list[str]) -> None:
    from airflow import policies, settings

    manager = airflow_versions.policy_manager()
    assert manager.get_plugin("penstock") is policy
    assert policy.hookimpl.project_name == policies.hookimpl.project_name
    task = operator()
    settings.task_policy(task)
    task._pre_execute_hook({})
    assert calls == ["gate"]


def test_it_costs_well_below_a_millisecond(calls: list[str]) -> None:
    tasks = [operator() for _ in range(500)]
    policy.task_policy(tasks[0])  # what is read once in a process
    began = time.perf_counter()
    for task in tasks:
        policy.task_policy(task)
    seconds = (time.perf_counter() - began) / len(tasks)
    assert seconds < 0.000_2, f"{seconds * 1e6:.0f} µs for each task"
