"""All that reaches behind Airflow's public face or differs between its versions. Nothing loads before its use."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import sys
import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from penstock.errors import ClaimError

log = logging.getLogger("penstock.airflow")
RESUME_METHOD = "penstock_resume"
DEFAULT_API_URL = "http://localhost:8080"
ANSWER_SECONDS = 30.0
HEALTH_SECONDS = 3.0
FAIL_METHOD = "__fail__"  # Airflow's own next_method for a task whose trigger failed: no code of the task runs then


def configuration() -> Any:
    """Airflow's configuration parser.

    Airflow 3.1 hears of providers' options late, if at all: until then it would pass over the command or the secret
    that gives the store's URL, and nothing would be limited.
    """
    from airflow.configuration import conf  # noqa: PLC0415  # the policy module must stay light

    conf.sensitive_config_values.add(("penstock", "store_url"))
    return conf


def named_options(section: str) -> set[str]:
    """The options of a section that somebody has set, in Airflow's file or by a variable, `_cmd` and `_secret` too."""
    prefix, parser = f"AIRFLOW__{section.upper()}__", configuration()
    names = {variable.removeprefix(prefix).lower() for variable in os.environ if variable.startswith(prefix)}
    return names | set(parser.options(section) if parser.has_section(section) else ())


def connection(conn_id: str) -> Any:
    """Airflow's connection of that id. Raises what `not_found` names when there is none, or whatever Airflow raises.

    In task processes, the dag-processor's children and the triggerer the SDK asks the execution API; the API server,
    the scheduler and the command line read Airflow's database, which only the older door still does.
    """
    if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
        from airflow.sdk import Connection  # noqa: PLC0415

        return _answered(Connection.async_get(conn_id)) if _loops else Connection.get(conn_id)
    from airflow.models.connection import Connection as StoredConnection  # noqa: PLC0415

    return StoredConnection.get_connection_from_secrets(conn_id)


def not_found() -> type[Exception]:
    """What Airflow raises where there is no such thing."""
    from airflow.exceptions import AirflowNotFoundException  # noqa: PLC0415

    found: type[Exception] = AirflowNotFoundException
    return found


def task_deferred(**facts: Any) -> Any:
    """The exception by which a task defers."""
    return _exception("TaskDeferred")(**facts)


def is_deferral(error: BaseException | None) -> bool:
    """Whether a task leaves the worker until a trigger fires."""
    return isinstance(error, _exception("TaskDeferred"))


def skipped(why: str) -> Any:
    """The exception by which a task is skipped."""
    return _exception("AirflowSkipException")(why)


def rescheduled(after_seconds: float) -> Any:
    """The exception by which a task leaves the worker for some time."""
    return _exception("AirflowRescheduleException")(datetime.now(tz=UTC) + timedelta(seconds=after_seconds))


def _exception(name: str) -> Any:
    """An exception of the task runner's: their home moved to the SDK after 3.1."""
    from airflow.sdk import exceptions  # noqa: PLC0415

    if not hasattr(exceptions, name):
        from airflow import exceptions  # noqa: PLC0415
    return getattr(exceptions, name)


def ends_task(event: Any) -> bool:
    """Whether this event of a trigger ends the task without another worker (`end_from_trigger`)."""
    from airflow.triggers.base import BaseTaskEndEvent  # noqa: PLC0415

    return isinstance(event, BaseTaskEndEvent)


def shares_its_stream(trigger: Any) -> bool:
    """Whether the triggerer itself runs the trigger, together with others of its kind, not by its `run`."""
    key: Callable[[], Any] | None = getattr(trigger, "shared_stream_key", None)
    return key is not None and key() is not None


def is_setup_or_teardown(task: Any) -> bool:
    """Whether the task makes or clears away what others work with."""
    return bool(getattr(task, "is_setup", False) or getattr(task, "is_teardown", False))


def in_one_process() -> bool:
    """Whether tasks run in the process that schedules them, one after the other: `airflow dags test`, `dag.test()`."""
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415

    return type(getattr(task_runner, "SUPERVISOR_COMMS", None)).__name__ == "InProcessSupervisorComms"


def _api_urls() -> tuple[str | None, str | None]:
    """The API's URL as it is shown to users, and as workers reach it: what the configuration says of each."""
    conf = configuration()
    shown, execution = (
        conf.get("api", "base_url", fallback=None),
        conf.get("core", "execution_api_server_url", fallback=None),
    )
    reached = execution.rstrip("/").removesuffix("/execution") if execution else None
    return shown.rstrip("/") if shown else None, reached


def own_url() -> str | None:
    """What tells this installation from others: the URL of its API; None where it has only what every one has."""
    return next((url for url in _api_urls() if url and "://" in url and url != DEFAULT_API_URL), None)


def triggerer_runs() -> bool | None:
    """Whether a triggerer is alive, as the API server's health page says, which needs no password; None: not told."""
    shown, reached = _api_urls()
    base = reached or shown or DEFAULT_API_URL
    if base.startswith("/"):
        base = DEFAULT_API_URL + base
    try:
        with urllib.request.urlopen(f"{base}/api/v2/monitor/health", timeout=HEALTH_SECONDS) as response:  # noqa: S310
            status = json.load(response)["triggerer"]["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return bool(status == "healthy")


@functools.cache
def after_execution(call: Callable[[BaseException | None], None]) -> bool:
    """Have `call` called when an attempt in this process has executed, with what it raised. False if this Airflow has
    no place for that.

    The place is `_execute_task` of the task runner: all of an attempt that is the task's own runs inside it (hooks
    before and after, execute or the resumed method), and it is left exactly once, whether by return, error, skip,
    deferral, reschedule or a wait for input. No public place is as good: post-execute hooks run on success alone; state
    callbacks not on deferral, and only after the state was reported; listeners make Airflow reject DAGs that use
    `end_from_trigger`; `execute` is bound before the first hook runs, so that a hook comes too late to wrap it, and a
    mapped operator has no instance earlier. Where the name is gone, slots come back by expiry, and the gate says so.
    """
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415  # loaded already wherever tasks run or are parsed

    execute = getattr(task_runner, "_execute_task", None)
    if execute is None:
        return False

    @functools.wraps(execute)
    def execute_then_call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = execute(*args, **kwargs)
        except BaseException as error:
            call(error)
            raise
        call(None)
        return result

    task_runner._execute_task = execute_then_call
    return True


def run_is_alive(dag_id: str, dag_run_id: str) -> bool:
    """Whether the run exists and is not over, as the execution API says. For the threads of a triggerer."""
    from airflow.sdk.execution_time import comms, task_runner  # noqa: PLC0415

    question = comms.GetDRCount(dag_id=dag_id, run_ids=[dag_run_id], states=["queued", "running"])
    count: int = _answered(task_runner.SUPERVISOR_COMMS.asend(question)).count
    return count > 0


def run_is_alive_here(dag_id: str, dag_run_id: str) -> bool:
    """As `run_is_alive`, for the main thread of a task process: its line to Airflow is no other thread's."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415

    count: int = RuntimeTaskInstance.get_dr_count(dag_id, run_ids=[dag_run_id], states=["queued", "running"])
    return count > 0


def ask_on(loop: asyncio.AbstractEventLoop) -> None:
    """Have this triggerer's threads ask Airflow on its event loop.

    What asks from elsewhere reads answers that are not its own, and Airflow 3.1 then ends the whole triggerer
    ("Response read out of order!").
    """
    _loops[:] = [loop]


def _answered(question: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(question, _loops[0]).result(ANSWER_SECONDS)


_loops: list[asyncio.AbstractEventLoop] = []  # of the triggerer, if this process is one


def only_fails(ti: Any) -> bool:
    """Whether this attempt was started only to report that its trigger failed."""
    return _next_method(ti) == FAIL_METHOD


def interrupted_call(ti: Any) -> dict[str, Any]:
    """What `resume` needs to go on where the gate interrupts this attempt; {} for a plain execute.

    The arguments that a self-deferring operator is resumed with are kept as text: Airflow's serializer would take the
    encoded dictionary apart.
    """
    method = _next_method(ti)
    if method is None:
        return {}
    arguments = ti._ti_context_from_server.next_kwargs or {}
    if method != RESUME_METHOD:
        return {"method": method, "arguments": json.dumps(arguments)}
    return {key: value for key, value in _decoded(arguments).items() if key in ("method", "arguments")}


def mark(ti: Any, text: str) -> None:
    """Leave this text with the task instance: an XCom named `penstock`, which the UI shows."""
    try:
        ti.xcom_push("penstock", text)
    except Exception:  # whatever Airflow's API answers: the task's log says it, too
        log.warning("Penstock: Airflow did not take the mark", exc_info=True)


def event_of(ti: Any) -> Mapping[str, Any]:
    """What our trigger has to say to the attempt that comes back from it; {} for any other."""
    if _next_method(ti) != RESUME_METHOD:
        return {}
    event = _decoded(ti._ti_context_from_server.next_kwargs or {}).get("event")
    return event if isinstance(event, Mapping) else {}


def deferred_since(ti: Any) -> float | None:
    """When the wait began that this attempt comes back from, in seconds since 1970; None when it does not."""
    if _next_method(ti) != RESUME_METHOD:
        return None
    since: float | None = _decoded(ti._ti_context_from_server.next_kwargs or {}).get("since")
    return since


def let_resume(task: Any) -> None:
    """Give this task object the method that Airflow calls when our trigger has fired. Not serialized, not inherited."""
    setattr(task, RESUME_METHOD, functools.partial(_resume, task))


def _resume(
    task: Any,
    context: Any,
    event: Any = None,
    since: float | None = None,  # read before, by `deferred_since`
    method: str | None = None,
    arguments: str | None = None,
) -> Any:
    """Do what the gate had interrupted."""
    if method is None:
        return task.execute(context=context)
    return task.resume_execution(method, _decoded(json.loads(arguments or "{}")), context)


Kind = Literal["task", "partial", "result", "decorated", "group", "dag", "asset", "function"]


def kind_of(target: Any) -> Kind | None:
    """What a DAG's author has in hand; None for what is no part of a DAG. A plain function may become any of them.

    `partial` is what has not been expanded yet, `result` what a call of a `@task` function gives, `decorated` such a
    function itself or one under `@task_group`.
    """
    from airflow.sdk import DAG, BaseOperator, TaskGroup  # noqa: PLC0415
    from airflow.sdk.definitions.asset.decorators import AssetDefinition, MultiAssetDefinition  # noqa: PLC0415
    from airflow.sdk.definitions.decorators.task_group import _TaskGroupFactory  # noqa: PLC0415
    from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial  # noqa: PLC0415
    from airflow.sdk.definitions.xcom_arg import PlainXComArg  # noqa: PLC0415

    kinds: list[tuple[Kind, Any]] = [
        ("task", BaseOperator | MappedOperator),
        ("partial", OperatorPartial),
        ("result", PlainXComArg),
        ("decorated", _TaskGroupFactory),
        ("group", TaskGroup),
        ("dag", DAG),
        ("asset", AssetDefinition | MultiAssetDefinition),
    ]
    for kind, classes in kinds:
        if isinstance(target, classes):
            return kind
    if getattr(target, "_airflow_is_task_decorator", False):
        return "decorated"
    return "function" if callable(target) and not inspect.isclass(target) else None


def is_dag_factory(function: Any) -> bool:
    """Whether `@dag` made this function: it returns a DAG when it is called."""
    return getattr(function, "__globals__", {}).get("__name__") == "airflow.sdk.definitions.dag"


def group_being_defined() -> Any | None:
    """The task group, a DAG's root group included, whose body runs now; None where no DAG is being defined."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext  # noqa: PLC0415

    dag = DagContext.get_current()
    return TaskGroupContext.get_current(dag) if dag is not None else None


@functools.cache
def hide_from_source(*decorators: str) -> None:
    """Leave these decorators out where Airflow takes a task's function over as text (`@task.virtualenv` and others).

    Airflow leaves out its own by the same function. Where that is gone, such a task fails with a NameError that names
    the decorator.
    """
    from airflow.sdk.bases import decorator  # noqa: PLC0415

    remove = getattr(decorator, "remove_task_decorator", None)
    if remove is None:
        return

    @functools.wraps(remove)
    def remove_ours_too(python_source: str, task_decorator_name: str) -> Any:
        for name in decorators:
            if f"@{name}" in python_source:
                python_source = remove(python_source, name)
        return remove(python_source, task_decorator_name)

    decorator.remove_task_decorator = remove_ours_too


def function_of(task: Any) -> Any:
    """The function that a task runs (`@task` in all its forms, `@asset`, PythonOperator); None where it has none."""
    function = getattr(task, "python_callable", None)
    if function is None and (partial_kwargs := getattr(task, "partial_kwargs", None)) is not None:
        function = partial_kwargs.get("python_callable")
    while isinstance(function, functools.partial):
        function = function.func
    return function


def rendered(task: Any, text: str, context: Mapping[str, Any]) -> str:
    """The text as the task's own template environment renders it: as text, even where the DAG renders to objects."""
    try:
        template = task.get_template_env(task.dag).from_string(text)
        environment = template.environment
        names = {**template.globals, **context}
        nodes = template.root_render_func(environment.context_class(environment, names, template.name, template.blocks))
        return "".join(map(str, nodes))
    except Exception as error:
        raise ClaimError(f"{text!r} of limited(…) cannot be rendered: {error}") from error


def arguments_of(task: Any) -> dict[str, Any]:
    """The arguments with which the task's function will be called, by name; {} for a task without one."""
    function = function_of(task)
    if function is None:
        return {}
    try:
        bound = inspect.signature(function).bind_partial(*(task.op_args or ()), **(task.op_kwargs or {}))
    except (AttributeError, TypeError, ValueError):  # no such arguments, or ones that Airflow will refuse in a moment
        return {}
    bound.apply_defaults()
    return dict(bound.arguments)


def _next_method(ti: Any) -> str | None:
    from_server = getattr(ti, "_ti_context_from_server", None)
    method: str | None = from_server.next_method if from_server is not None else None
    return method


def _decoded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As the task runner itself decodes `next_kwargs`: the SDK's encoding, else the older one."""
    try:
        from airflow.sdk.serde import deserialize  # noqa: PLC0415

        decoded: dict[str, Any] = deserialize(arguments)
    except (ImportError, KeyError, AttributeError, TypeError):
        from airflow.serialization.serialized_objects import BaseSerialization  # noqa: PLC0415

        decoded = BaseSerialization.deserialize(arguments)
    return decoded


# -- what `airflow penstock doctor` asks -----------------------------------------------------------------------------


def plugin_base() -> Any:
    """The class of plugins: the SDK's, which costs a task process least; before 3.2 there is only the older one."""
    try:
        from airflow.sdk.plugins_manager import AirflowPlugin  # noqa: PLC0415
    except ImportError:
        from airflow.plugins_manager import AirflowPlugin  # noqa: PLC0415
    return AirflowPlugin


def loaded_plugins() -> tuple[set[str], dict[str, str]]:
    """The names of the plugins that this Airflow has loaded, and by module why others are not."""
    from airflow import plugins_manager  # noqa: PLC0415

    if hasattr(plugins_manager, "get_import_errors"):
        plugins, errors = plugins_manager._get_plugins()
    else:
        plugins_manager.ensure_plugins_loaded()
        plugins, errors = plugins_manager.plugins, plugins_manager.import_errors
    return {plugin.name for plugin in plugins or ()}, dict(errors)


def policies() -> set[str]:
    """The modules whose cluster policies this Airflow calls."""
    from airflow import settings  # noqa: PLC0415

    if hasattr(settings, "get_policy_plugin_manager"):
        manager = settings.get_policy_plugin_manager()
    else:
        manager = settings.POLICY_PLUGIN_MANAGER
    return {getattr(module, "__name__", "") for module in manager.get_plugins()}


def living_triggerer() -> bool:
    """Whether a triggerer beats, as Airflow's database says. Raises whatever that raises where it cannot be reached."""
    from airflow.jobs.job import most_recent_job  # noqa: PLC0415

    job = most_recent_job("TriggererJob")
    return job is not None and bool(job.is_alive())


def knows_task_runner() -> bool:
    """Whether `after_execution` finds its place in this Airflow."""
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415

    return hasattr(task_runner, "_execute_task")
