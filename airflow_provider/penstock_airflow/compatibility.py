"""All that reaches behind Airflow's public face or differs between its versions. Nothing loads before its use."""

from __future__ import annotations

import functools
import hmac
import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

log = logging.getLogger("penstock.airflow")
RESUME_METHOD = "penstock_resume"
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


def task_deferred(**facts: Any) -> Any:
    """The exception by which a task defers."""
    return _exception("TaskDeferred")(**facts)


def is_deferral(error: BaseException | None) -> bool:
    """Whether a task leaves the worker until a trigger fires."""
    return isinstance(error, _exception("TaskDeferred"))


def skipped(why: str) -> Any:
    """The exception by which a task is skipped."""
    return _exception("AirflowSkipException")(why)


def failed(why: str) -> Any:
    """The exception by which a task fails without another try."""
    return _exception("AirflowFailException")(why)


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


# -- what the concurrency page asks, in the API server -----------------------------------------------------------------


async def signed_in(request: Any) -> Any:
    """Airflow's user who sends this request, by cookie, header or whatever its auth manager adds; None: nobody."""
    from airflow.api_fastapi.core_api import security  # noqa: PLC0415
    from fastapi import HTTPException  # noqa: PLC0415

    try:
        return await security.get_user(request, None, await security.bearer_scheme(request))
    except HTTPException:  # no token, or one that is over, revoked, or none of Airflow's
        return None


def login_url(then: str) -> str:
    """Airflow's login, which leads on to the URL `then`."""
    from airflow.api_fastapi.app import API_ROOT_PATH  # noqa: PLC0415

    return f"{API_ROOT_PATH}api/v2/auth/login?{urlencode({'next': then})}"


def may_see_pools(user: Any) -> bool:
    """Whether Airflow shows its pools to this user. Asks the auth manager, which may take its time."""
    return _may("GET", user)


def may_edit_pools(user: Any) -> bool:
    """Whether this user may add, edit and delete Airflow's pools: all three."""
    return all(_may(method, user) for method in ("POST", "PUT", "DELETE"))


def _may(method: str, user: Any) -> bool:
    from airflow.api_fastapi.app import get_auth_manager  # noqa: PLC0415

    return bool(get_auth_manager().is_authorized_pool(method=method, user=user))


def derived_secret(purpose: str) -> bytes:
    """A secret of our own out of Airflow's `[api] secret_key`, which all its API servers share."""
    from airflow.api_fastapi.auth.tokens import get_signing_key  # noqa: PLC0415

    return hmac.digest(get_signing_key("api", "secret_key").encode(), purpose.encode(), "sha256")


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


def mounted() -> set[str]:
    """Where the API server mounts the applications that plugins bring."""
    from airflow import plugins_manager  # noqa: PLC0415

    if hasattr(plugins_manager, "get_fastapi_plugins"):
        apps, _ = plugins_manager.get_fastapi_plugins()
    else:  # before 3.2
        plugins_manager.initialize_fastapi_plugins()
        apps = plugins_manager.fastapi_apps
    return {app.get("url_prefix") for app in apps or ()}


def policies() -> set[str]:
    """The modules whose cluster policies this Airflow calls."""
    from airflow import settings  # noqa: PLC0415

    if hasattr(settings, "get_policy_plugin_manager"):
        manager = settings.get_policy_plugin_manager()
    else:
        manager = settings.POLICY_PLUGIN_MANAGER
    return {getattr(module, "__name__", "") for module in manager.get_plugins()}


def coordinated_queues() -> list[str]:
    """The queues whose tasks Airflow gives to programs in other languages, from 3.3 on: no Python of a task runs there.

    Raises Airflow's error where the option is no JSON.
    """
    return sorted(configuration().getjson("sdk", "queue_to_coordinator", fallback={}) or {})


def knows_task_runner() -> bool:
    """Whether `after_execution` finds its place in this Airflow."""
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415

    return hasattr(task_runner, "_execute_task")
