"""What of the provider this Airflow has really loaded, part by part: for `penstock doctor`.

Run as a program, it prints the parts as JSON, one a line: it looks as a fresh process of this Airflow would.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from penstock.diagnosis import Part, State
from penstock.errors import PenstockError

from penstock_airflow import asking, compatibility, installation, page
from penstock_airflow.configuration import SECTION
from penstock_airflow.installation import Installation

POLICY, PLUGIN, TRIGGER = "penstock_airflow.policy", "penstock", "penstock_airflow.trigger"
DISTRIBUTION, CONNECTION_TYPE = "penstock", "penstock"
AGAIN = "install penstock[airflow] again in this environment, and restart Airflow"


def parts() -> Iterator[Part]:
    """Each part once. What cannot be looked at is a fault, with the error."""
    for name, look in (
        ("policy", _policy),
        ("task runner", _task_runner),
        ("plugin", _plugin),
        ("page", _page),
        ("provider", _provider),
        ("connection type", _connection_type),
        ("trigger", _trigger),
        ("settings", _settings),
        ("installation", _installation),
        ("triggerer", _triggerer),
    ):
        yield _looked(f"airflow {name}", look)


def _looked(name: str, look: Callable[[str], Part]) -> Part:
    try:
        return look(name)
    except Exception as error:  # Airflow's parts raise what they like, and one that is broken hides no other
        text = " ".join(str(error).split())[:300]
        return Part(name, State.FAULT, f"cannot be looked at: {type(error).__name__}: {text}", AGAIN)


def _policy(name: str) -> Part:
    if POLICY not in compatibility.policies():
        return Part(name, State.FAULT, "Airflow does not call it: no task is limited", AGAIN)
    if not installation.store_is_configured():
        return Part(name, State.INACTIVE, "loaded, but does nothing without a store")
    if queues := compatibility.coordinated_queues():
        detail = f"loaded, but not asked for what runs outside Python: tasks of the queue {', '.join(queues)} "
        detail += "([sdk] queue_to_coordinator) are not limited"
        remedy = "limit those by Airflow's own pools, or have a Python task do the work"
        return Part(name, State.WARNING, detail, remedy)
    return Part(name, State.OK, "loaded: every task of every DAG comes through the gate")


def _task_runner(name: str) -> Part:
    if compatibility.knows_task_runner():
        return Part(name, State.OK, "known: slots are free at the end of each attempt")
    detail = "not known to this Penstock: slots are free only when the session's time is over"
    return Part(name, State.WARNING, detail, "a newer Penstock may know it")


def _plugin(name: str) -> Part:
    names, errors = compatibility.loaded_plugins()
    if PLUGIN in names:
        return Part(name, State.OK, "loaded: a waiting task links to who holds its slot")
    why = next((error for module, error in errors.items() if "penstock" in module), "Airflow does not find it")
    return Part(name, State.WARNING, f"not loaded ({why}): tasks have no link to who holds their slot", AGAIN)


def _page(name: str) -> Part:
    if not page.is_wanted():
        return Part(name, State.INACTIVE, f"switched off by [{SECTION}] page")
    if missing := page.missing():
        detail = f"not in the menu: {', '.join(missing)} cannot be imported"
        return Part(
            name, State.WARNING, detail, 'pip install "penstock[web]" where the API server runs, and restart it'
        )
    if page.PREFIX not in compatibility.mounted():
        return Part(name, State.WARNING, "not mounted: Airflow has not loaded it with the plugin", AGAIN)
    import penstock_airflow.web  # noqa: F401, PLC0415  # as the API server does with the first who looks

    if not installation.store_is_configured():
        return Part(name, State.INACTIVE, "in the menu, but has nothing to show without a store")
    return Part(name, State.OK, f"in the menu under Browse, mounted at {page.PREFIX}/")


def _provider(name: str) -> Part:
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415

    found = ProvidersManager().providers.get(DISTRIBUTION)
    if found is None:
        return Part(name, State.FAULT, "Airflow does not find it: no settings, no connection type", AGAIN)
    return Part(name, State.OK, f"{DISTRIBUTION} {found.version}", facts={"version": found.version})


def _connection_type(name: str) -> Part:
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415

    if ProvidersManager().hooks.get(CONNECTION_TYPE) is None:
        return Part(name, State.WARNING, "Airflow cannot load its hook: the form is missing", AGAIN)
    return Part(name, State.OK, f"{CONNECTION_TYPE}: its form and test are there")


def _trigger(name: str) -> Part:
    from penstock_airflow.trigger import PenstockTrigger  # noqa: PLC0415

    path, _ = PenstockTrigger.waiting_for([], not_before=0).serialize()
    return Part(name, State.OK, f"{path} can be loaded")


def _settings(name: str) -> Part:
    try:
        here = Installation.configured()
        if installation.store_is_configured():
            installation.store_url(here)  # asks Airflow for the connection where there is one
    except PenstockError as error:
        return Part(name, State.FAULT, str(error), "correct it for every component: until then each task fails")
    unknown = sorted(_named() - _options().keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], _options(), 1)
        remedy = f"did you mean {near[0]}?" if near else "take it out: nothing reads it"
        return Part(name, State.WARNING, f"[{SECTION}] {unknown[0]} is no setting of Penstock", remedy)
    source = "store_url" if here.store_url else f"the connection {here.conn_id}" if here.conn_id else "nowhere"
    detail = f"deployment {here.deployment}, the store from {source}, enforcement {here.enforcement}"
    facts = {"deployment": here.deployment, "store_from": source, "enforcement": here.enforcement}
    if here.enforcement == "enforce":
        return Part(name, State.OK, detail, facts=facts)
    return Part(name, State.WARNING, f"{detail}: nothing waits", "set it to enforce when you have seen enough", facts)


def _installation(name: str) -> Part:
    """Whether a second one under the same name would be noticed. Each process must come to the same answer: workers see
    nothing of Airflow's database, so that its API's URL is all there is.
    """
    if not installation.store_is_configured():
        return Part(name, State.INACTIVE, "there is no store to share with others")
    url = asking.own_url()
    if url is not None:
        return Part(name, State.OK, f"told from others by its URL: {url}", facts={"url": url})
    detail = "has no URL of its own: another one under its name on this store would not be noticed"
    return Part(
        name, State.WARNING, detail, "set [api] base_url, for every component, to where users find this Airflow"
    )


def _triggerer(name: str) -> Part:
    try:
        seen = asking.triggerers()
    except Exception as error:  # a worker may not reach Airflow's database, nor need it
        detail = f"cannot be seen from here: Airflow's database cannot be asked ({type(error).__name__})"
        return Part(name, State.WARNING, detail, "ask where the scheduler runs")
    if seen.unassigned:
        detail = f"{_tasks(seen.unassigned)} for slots in no triggerer, and {'is' if seen.unassigned == 1 else 'are'} "
        detail += f"granted nothing; {seen.running} running, with room for {seen.capacity} of {seen.triggers} triggers"
        remedy = "start another `airflow triggerer`, or raise [triggerer] capacity; where triggerers have --queues, "
        return Part(name, State.WARNING, detail, remedy + "set [penstock] triggerer_queues")
    if seen.running:
        facts = {"running": seen.running, "capacity": seen.capacity, "triggers": seen.triggers}
        detail = f"{seen.running} running, {seen.triggers} of {seen.capacity} places taken"
        return Part(name, State.OK, f"{detail}; {_tasks(seen.waiting)} for slots there", facts=facts)
    if not installation.store_is_configured():
        return Part(name, State.INACTIVE, "none is running, and none is needed without a store")
    if Installation.configured().waiting == "defer":
        detail = "none is running: tasks that have to wait are rescheduled instead"
        return Part(name, State.WARNING, detail, "start `airflow triggerer`")
    return Part(name, State.INACTIVE, "none is running, and none is needed as tasks wait here")


def _tasks(waiting: int) -> str:
    return "1 task waits" if waiting == 1 else f"{waiting} tasks wait"


def _options() -> dict[str, Any]:
    from penstock_airflow.provider_info import get_provider_info  # noqa: PLC0415

    options: dict[str, Any] = get_provider_info()["config"][SECTION]["options"]
    return options


def _named() -> set[str]:
    """The options that somebody has set, in a file or by a variable; where a value comes from is no name of its own."""
    return {option.removesuffix("_cmd").removesuffix("_secret") for option in compatibility.named_options(SECTION)}


if __name__ == "__main__":
    for part in parts():
        sys.stdout.write(json.dumps(part.as_dict()) + "\n")
