"""`limited` on everything that an Airflow DAG is made of: what the gate reads of it later. No Airflow runs here."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import FunctionType, SimpleNamespace
from typing import Any

import airflow_versions
import pytest
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Asset, TaskGroup, asset, dag, task, task_group
from airflow.sdk.definitions._internal.contextmanager import DagContext
from penstock.errors import ClaimError
from penstock_airflow import limited
from penstock_airflow.limits import Asks, Limits, RunLimits, asks_of, of_run, of_task


@pytest.fixture
def flow() -> Iterator[DAG]:
    """The DAG that is being defined."""
    with DAG("flow", schedule=None, params={"table": "t1", "slots": 3}) as flow:
        yield flow


def context_of(task: Any, conf: Any = None, **names: Any) -> dict[str, Any]:
    params = dict(task.dag.params)
    return {"task": task, "dag": task.dag, "params": params, "dag_run": SimpleNamespace(conf=conf), **names}


def pools_of(task: Any, **names: Any) -> dict[str, int]:
    return dict(of_task(context_of(task, **names)).pools)


def plain(table: str = "t") -> None:
    """A function of nothing in particular."""


# -- where it stands -------------------------------------------------------------------------------------------------


def test_the_package_loads_nothing_and_no_module_takes_the_name() -> None:
    program = (
        "import sys, penstock_airflow\n"
        "assert not [name for name in sys.modules if name.startswith(('airflow', 'penstock.'))]\n"
        "import penstock_airflow.limits, penstock_airflow.authoring\n"
        "from penstock_airflow import limited\n"
        "assert limited is penstock_airflow.authoring.limited, limited\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_operator_is_the_operator_it_was(flow: DAG) -> None:
    operator = BashOperator(task_id="query", bash_command="true")
    assert limited("database:2", "api", tags={"k": "v"}, priority=4, on_blocked="skip")(operator) is operator
    assert of_task(context_of(operator)) == Limits(
        pools={"database": 2, "api": 1}, tags={"k": "v"}, priority=4, on_blocked="skip"
    )
    prepared = operator.prepare_for_execution()  # what runs in the worker is a copy
    assert pools_of(prepared) == {"database": 2, "api": 1}


def test_a_task_without_a_word_has_no_limits_of_its_own(flow: DAG) -> None:
    assert of_task(context_of(BashOperator(task_id="query", bash_command="true"))) == Limits()
    assert of_run(context_of(BashOperator(task_id="again", bash_command="true"))) == RunLimits()


KINDS = [task, task(retries=2), task.bash, task.branch, task.short_circuit, task.sensor, task.virtualenv]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_takes_it_above_and_below(flow: DAG, kind: Any) -> None:
    above, below = limited("database:2")(kind(plain)), kind(limited("database:2")(plain))
    for decorated in (above, below):
        assert pools_of(decorated().operator) == {"database": 2}
        assert decorated.__doc__ == plain.__doc__
        assert pools_of(decorated.override(task_id="other")().operator) == {"database": 2}
    assert pools_of(kind(plain)().operator) == {}, "only the one that was said is under it"


def test_what_runs_elsewhere_as_text_goes_without_the_decorator(flow: DAG) -> None:
    @limited("above")
    @task.virtualenv
    def first() -> int:
        return 1

    @task.external_python(python="python3")
    @limited(
        "below",
        tags={"k": "v"},
    )
    def second() -> int:
        return 2

    for decorated in (first, second):
        source = decorated().operator.get_python_source()
        assert source.splitlines()[0].startswith("def "), source


def test_a_function_keeps_its_kind_signature_and_source() -> None:
    async def coroutine(x: int) -> int:
        return x

    def generator(x: int, *, y: int = 3) -> Iterator[int]:
        yield x

    for function in (plain, coroutine, generator):
        under = limited("a")(function)
        assert under is not function
        assert inspect.iscoroutinefunction(under) == inspect.iscoroutinefunction(function)
        assert inspect.isgeneratorfunction(under) == inspect.isgeneratorfunction(function)
        assert inspect.signature(under) == inspect.signature(function)
        assert inspect.getsource(under) == inspect.getsource(function)
        assert (under.__name__, under.__module__) == (function.__name__, function.__module__)
    assert list(limited("a")(generator)(1, y=2)) == [1]


def test_a_mapped_task_has_it_in_the_worker_where_it_is_another_object(flow: DAG) -> None:
    classic = limited("database")(BashOperator.partial(task_id="classic").expand(bash_command=["true", "false"]))
    decorated = limited("api")(task(plain)).expand(table=["t1", "t2"]).operator
    partial = limited("api")(task(plain)).partial().expand_kwargs([{"table": "t1"}]).operator
    by_function = PythonOperator.partial(task_id="p", python_callable=limited("f")(plain)).expand(op_args=[["t1"]])
    assert pools_of(classic.unmap({"bash_command": "true"})) == {"database": 1}
    assert pools_of(decorated.unmap({"op_kwargs": {"table": "t1"}})) == {"api": 1}
    assert pools_of(partial.unmap({"op_kwargs": {"table": "t1"}})) == {"api": 1}
    assert pools_of(by_function.unmap({"op_args": ["t1"]})) == {"f": 1}


def test_the_result_of_a_call_and_the_function_of_an_operator_take_it(flow: DAG) -> None:
    result = task(plain)()
    assert limited("database")(result) is result
    assert pools_of(result.operator) == {"database": 1}
    assert pools_of(PythonOperator(task_id="p", python_callable=limited("api")(plain))) == {"api": 1}


def asset_function() -> Any:
    """A function at the top of a module, as @asset wants it; a new one each time."""
    return FunctionType(plain.__code__, globals(), "plain", plain.__defaults__)


def test_assets_take_it_above_and_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DagContext, "current_autoregister_module_name", __name__)
    monkeypatch.setattr(DagContext, "autoregistered_dags", set())
    under = limited("database:2")
    under(asset(schedule=None, dag_id="above")(asset_function()))
    asset(schedule=None, dag_id="below")(under(asset_function()))
    under(asset(schedule=None, dag_id="above_task")(task(asset_function())))
    asset(schedule=None, dag_id="below_task")(under(task(asset_function())))
    under(asset.multi(schedule=None, dag_id="multi", outlets=[Asset("one")])(asset_function()))
    asset(schedule=None, dag_id="free")(asset_function())
    found = {dag.dag_id: pools_of(dag.tasks[0]) for dag, _ in DagContext.autoregistered_dags}
    names = ["above", "below", "above_task", "below_task", "multi"]
    assert found == {"free": {}, **{name: {"database": 2} for name in names}}


def test_the_limits_of_a_group_count_for_each_task_in_it_and_the_inner_word_comes_first(flow: DAG) -> None:
    outside = BashOperator(task_id="outside", bash_command="true")
    with limited("outer:2", "shared:2", tags={"a": "outer", "b": "outer"}, on_blocked="fail")(TaskGroup("outer")):
        first = BashOperator(task_id="first", bash_command="true")
        with limited("inner", "shared:5", tags={"b": "inner"}, priority=3, on_blocked="wait")(TaskGroup("inner")):
            second = limited("own", wait_timeout_seconds=9)(BashOperator(task_id="second", bash_command="true"))
    assert of_task(context_of(outside)) == Limits()
    assert of_task(context_of(first)) == Limits(
        pools={"outer": 2, "shared": 2}, tags={"a": "outer", "b": "outer"}, on_blocked="fail"
    )
    assert of_task(context_of(second)) == Limits(
        pools={"outer": 2, "shared": 5, "inner": 1, "own": 1},
        tags={"a": "outer", "b": "inner"},
        priority=3,
        wait_timeout_seconds=9,
    )


def test_task_group_functions_take_it_above_and_below(flow: DAG) -> None:
    def steps(table: str = "t") -> None:
        BashOperator(task_id="step", bash_command="true")

    limited("above")(task_group(steps))()
    task_group(group_id="below")(limited("below")(steps))()
    limited("mapped")(task_group(group_id="mapped")(steps)).expand(table=["t1", "t2"])
    task_group(group_id="free")(steps)()
    twice = limited("twice")(task_group(group_id="twice")(steps))
    twice()
    twice()
    assert {one.task_id: pools_of(one) for one in flow.tasks} == {
        "steps.step": {"above": 1},
        "below.step": {"below": 1},
        "mapped.step": {"mapped": 1},
        "free.step": {},
        "twice.step": {"twice": 1},
        "twice__1.step": {"twice": 1},
    }


WITHIN = [{"key": "db", "limit": 1}]


def build(table: str = "t") -> None:
    BashOperator(task_id="step", bash_command="true")


@pytest.mark.parametrize(
    "make",
    [
        lambda under: under(dag(schedule=None)(build))(),
        lambda under: dag(schedule=None)(under(build))(),
        lambda under: under(dag("named", schedule=None)(build))("x"),
    ],
)
def test_dag_functions_take_it_above_and_below(make: Any) -> None:
    under = limited(
        "rooms:2", tags={"team": "ml"}, priority=2, on_blocked="skip", max_concurrent=4, tag_concurrency_limits=WITHIN
    )
    made = make(under)
    (step,) = made.tasks
    assert of_run(context_of(step)) == RunLimits(
        pools={"rooms": 2},
        tags={"team": "ml"},
        priority=2,
        on_blocked="skip",
        within={"max_concurrent": 4, "tag_concurrency_limits": WITHIN},
    )
    assert of_task(context_of(step)) == Limits(), "the run's pools are the run's"


def test_a_dag_object_takes_it() -> None:
    with limited(max_concurrent=1)(DAG("object", schedule=None)) as flow:
        step = BashOperator(task_id="step", bash_command="true")
    assert flow.dag_id == "object"
    assert of_run(context_of(step)).within == {"max_concurrent": 1}


def test_exempt_counts_for_a_task_for_a_group_and_for_a_whole_dag(flow: DAG) -> None:
    with limited(exempt=True)(TaskGroup("group")):
        inside = BashOperator(task_id="inside", bash_command="true")
    alone = limited(exempt=True)(BashOperator(task_id="alone", bash_command="true"))
    other = BashOperator(task_id="other", bash_command="true")
    assert [of_task(context_of(each)).exempt for each in (inside, alone, other)] == [True, True, False]
    limited(exempt=True)(flow)
    assert of_task(context_of(other)).exempt


def test_the_serialized_dag_is_the_same_as_without() -> None:
    def serialized(under: Any) -> Any:
        with DAG("same", schedule=None) as flow:
            under(BashOperator(task_id="classic", bash_command="true"))
            under(BashOperator.partial(task_id="mapped").expand(bash_command=["true"]))
            under(task(plain))("x")
            under(task(plain)).expand(table=["x"])
            with under(TaskGroup("group")):
                BashOperator(task_id="step", bash_command="true")
        under(flow)
        return airflow_versions.serialized_dag(flow)

    assert serialized(limited("database")) == serialized(lambda target: target)


# -- templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, True])
def test_pools_slots_tags_and_priority_may_be_templates(native: bool) -> None:
    params = {"table": "007", "slots": 3}
    with DAG("templates", schedule=None, params=params, render_template_as_native_obj=native):
        step = BashOperator(task_id="step", bash_command="true")
    limited(
        "table_{{ params.table }}:{{ params.slots }}",
        {"{{ params.table }}": "{{ params.slots + 1 }}"},
        tags={"table": "{{ params.table }}", "{{ params.table }}": "{# nothing #}x"},
        priority="{{ -params.slots }}",
    )(step)
    assert of_task(context_of(step)) == Limits(
        pools={"table_007": 3, "007": 4}, tags={"table": "007", "007": "x"}, priority=-3
    )


def test_slots_of_one_pool_may_stand_beside_it(flow: DAG) -> None:
    step = limited("database", slots="{{ params.slots }}")(BashOperator(task_id="step", bash_command="true"))
    assert pools_of(step) == {"database": 3}
    assert pools_of(limited("api", slots=2)(BashOperator(task_id="other", bash_command="true"))) == {"api": 2}


def test_each_index_of_a_mapped_task_has_its_own_values(flow: DAG) -> None:
    by_argument = limited("table_{{ table }}")(task(plain)).expand(table=["t1", "t2"]).operator
    by_field = BashOperator.partial(task_id="classic").expand(bash_command=["a", "b"])
    limited("cmd_{{ task.bash_command }}", tags={"index": "{{ ti.map_index }}"})(by_field)
    assert pools_of(by_argument.unmap({"op_kwargs": {"table": "t2"}})) == {"table_t2": 1}
    rendered = of_task(context_of(by_field.unmap({"bash_command": "b"}), ti=SimpleNamespace(map_index=1)))
    assert (rendered.pools, rendered.tags) == ({"cmd_b": 1}, {"index": "1"})


def test_what_is_said_of_the_run_sees_no_arguments_of_one_of_its_tasks(flow: DAG) -> None:
    limited("table_{{ table }}")(flow)
    with pytest.raises(ClaimError, match="'table' is undefined"):
        of_run(context_of(task(plain)().operator))


def test_an_argument_that_was_not_given_has_its_default_and_never_hides_what_airflow_gives(flow: DAG) -> None:
    def both(table: str = "default", params: Any = None) -> None: ...

    step = limited("{{ table }}_{{ params.table }}")(task(both))()
    assert pools_of(step.operator) == {"default_t1": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"pools": ["{{ absent }}"]}, "'absent' is undefined"),
        ({"pools": ["{{ params.table"]}, "cannot be rendered"),
        ({"pools": ["{{ '' }}"]}, "at least one character"),
        ({"pools": ["a {{ params.table }}"]}, "whitespace"),
        ({"pools": ["t1", "{{ params.table }}"]}, "named twice"),
        ({"pools": [{"a": "{{ params.table }}"}]}, "gives 't1' slots"),
        ({"pools": ["a:{{ 0 }}"]}, "at least 1 slot"),
        ({"priority": "{{ params.table }}"}, "priority='{{ params.table }}' gives 't1'"),
    ],
)
def test_a_template_that_gives_something_unusable_fails_the_task_and_says_so(
    flow: DAG, words: dict[str, Any], message: str
) -> None:
    step = BashOperator(task_id="step", bash_command="true")
    limited(*words.pop("pools", ()), **words)(step)
    with pytest.raises(ClaimError, match=message.replace("{", r"\{").replace("|", r"\|")):
        of_task(context_of(step))


# -- the run's conf --------------------------------------------------------------------------------------------------


def test_the_conf_of_a_run_comes_before_its_dag(flow: DAG) -> None:
    limited("rooms:{{ params.slots }}", tags={"a": "dag", "b": "dag"}, priority=1, max_concurrent=4)(flow)
    limited_within = {"max_concurrent": 2, "tag_concurrency_limits": WITHIN}
    conf = {"penstock": {"pools": ["extra:2"], "tags": {"b": "conf"}, "on_blocked": "fail", **limited_within}}
    step = BashOperator(task_id="step", bash_command="true")
    assert of_run(context_of(step, conf)) == RunLimits(
        pools={"rooms": 3, "extra": 2},
        tags={"a": "dag", "b": "conf"},
        priority=1,
        on_blocked="fail",
        within=limited_within,
    )
    assert of_run(context_of(step, {"other": 1})).within == {"max_concurrent": 4}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (7, "a mapping is expected"),
        ({"max_concurent": 1}, "is 'max_concurrent' meant"),
        ({"exempt": True}, "use any of pools"),
        ({"max_concurrent": "2"}, "max_concurrent"),
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"tag_concurrency_limits": [{"key": "a"}]}, "tag_concurrency_limits"),
        ({"pools": 7}, r"conf\[\"penstock\"\]"),
        ({"pools": [7]}, "'name:slots'"),
        ({"pools": ["a", "a:2"]}, "named twice"),
        ({"pools": ["{{ conn.secret.password }}"]}, "whitespace"),
        ({"priority": "{{ 1 }}"}, "a whole number is expected"),
        ({"tags": ["a"]}, "a mapping of texts"),
        ({"on_blocked": "wat"}, "'wait', 'skip', 'fail'"),
    ],
)
def test_a_wrong_conf_is_said_in_clear_words_and_is_never_a_template(flow: DAG, block: Any, message: str) -> None:
    step = BashOperator(task_id="step", bash_command="true")
    with pytest.raises(ClaimError, match=message) as caught:
        of_run(context_of(step, {"penstock": block}))
    assert str(caught.value).startswith('conf["penstock"]: ')


def test_a_tag_in_a_conf_is_what_it_is(flow: DAG) -> None:
    step = BashOperator(task_id="step", bash_command="true")
    conf = {"penstock": {"tags": {"a": "{{ params.table }}"}, "max_concurrent": None}}
    assert of_run(context_of(step, conf)).tags == {"a": "{{ params.table }}"}


# -- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"pools": ["a", "a:2"]}, "named twice"),
        ({"pools": ["a b"]}, "whitespace"),
        ({"pools": ["a:0"]}, "at least 1 slot"),
        ({"pools": [{"a": 0}]}, "whole number of at least 1"),
        ({"pools": [{"a": True}]}, "whole number of at least 1"),
        ({"pools": ["a", 2]}, "'name:slots'"),
        ({"pools": ["a", "b"], "slots": 2}, "belongs to one pool"),
        ({"tags": {"a": 1}}, "write it in quotes"),
        ({"tags": ["a"]}, "a mapping of texts"),
        ({"priority": "high"}, "whole number"),
        ({"priority": True}, "whole number"),
        ({"on_blocked": "wat"}, "'wait', 'skip', 'fail'"),
        ({"wait_timeout_seconds": -1}, "at least 0"),
        ({"wait_timeout_seconds": 5, "on_blocked": "skip"}, "never waits"),
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"tag_concurrency_limits": [{"key": "a"}]}, "tag_concurrency_limits"),
        ({}, "says nothing"),
        ({"exempt": True, "pools": ["a"]}, "without any limit"),
    ],
)
def test_words_that_can_never_be_right_fail_the_parse(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ClaimError, match=message):
        limited(*words.pop("pools", ()), **words)


def test_without_a_word_it_says_how_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"@limited\('database'\)"):
        limited(plain)


def test_what_cannot_be_limited_says_where_to_put_it(flow: DAG) -> None:
    step = BashOperator(task_id="step", bash_command="true")
    partial = BashOperator.partial(task_id="partial")
    for target in (step.output.map(str), [step], BashOperator, None, len):
        with pytest.raises(TypeError, match=r"above or below @task|wrap it in a def"):
            limited("a")(target)
    with pytest.raises(TypeError, match="the result of its expand"):
        limited("a")(partial)
    partial.expand(bash_command=["true"])


def stub_of(name: str = "stub") -> Any:
    """A task whose work a program in another language does."""
    from airflow.providers.standard.decorators.stub import stub

    def extract(table: str = "t") -> None: ...

    extract.__name__ = name
    return stub(extract, queue="java")


def test_a_stub_cannot_be_limited_as_no_python_of_it_runs(flow: DAG) -> None:
    for target in (stub_of(), stub_of()(), stub_of()().operator, stub_of().expand(table=["a", "b"])):
        with pytest.raises(TypeError, match=r"stub(__\d)? is a @task\.stub: .*limit it by Airflow's own pool="):
            limited("database")(target)
    assert of_task(context_of(limited(exempt=True)(stub_of())().operator)).exempt


def test_one_thing_is_limited_once(flow: DAG) -> None:
    def steps() -> None: ...

    step = BashOperator(task_id="step", bash_command="true")
    by_function = PythonOperator(task_id="by_function", python_callable=limited("a")(plain))
    made = asset(schedule=None)(asset_function())
    for target in (step, flow, TaskGroup("group"), task(plain), task_group(steps), plain, made):
        with pytest.raises(TypeError, match="already"):
            limited("b")(limited("a")(target))
    with pytest.raises(TypeError, match="already"):
        limited("b")(by_function)


def test_limits_within_a_run_are_the_dags_to_say(flow: DAG) -> None:
    words = limited(max_concurrent=2)
    step = BashOperator(task_id="step", bash_command="true")
    for target in (step, TaskGroup("group"), step.output):
        with pytest.raises(TypeError, match="say it of the DAG"):
            words(target)
    below = task(words(plain))()
    with pytest.raises(ClaimError, match="say it of the DAG"):
        of_task(context_of(below.operator))


def test_a_limited_function_that_nothing_makes_a_task_is_refused_where_a_dag_is_defined(flow: DAG) -> None:
    BashOperator(task_id="step", bash_command="true")
    with pytest.raises(TypeError, match="called as a plain function"):
        limited("a")(plain)()


# -- what is known before anything runs ------------------------------------------------------------------------------


def test_what_the_tasks_of_a_dag_ask_for_is_read_without_running_them(flow: DAG) -> None:
    first = limited("api:2", "{{ late }}", {"b": 1, "c": "{{ late }}"})(
        BashOperator(task_id="first", bash_command="true", pool="database", pool_slots=3)
    )
    with limited("group")(TaskGroup("group")):
        mapped = limited("own", on_blocked="skip")(task(plain)).override(pool="narrow").expand(table=["t1"])
        limited(exempt=True)(BashOperator(task_id="exempt", bash_command="true"))
    first >> mapped
    assert asks_of(flow) == (
        Asks(pool="database", pool_slots=3, pools={"api": 2, "b": 1}, is_root=True),
        Asks(pool="narrow", pool_slots=1, pools={"group": 1, "own": 1}, waits=False),
    )
    limited(exempt=True)(flow)
    assert asks_of(flow) == ()
