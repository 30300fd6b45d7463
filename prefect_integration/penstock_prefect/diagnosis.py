"""What of the integration this Prefect has really loaded, part by part: for `penstock doctor`.

Run as a program, it prints the parts as JSON, one a line: it looks as a fresh process of this Prefect would.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator

import httpx
from penstock.diagnosis import Part, State
from penstock.errors import PenstockError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterType
from prefect.plugins import load_prefect_collections
from prefect.settings import PREFECT_API_URL
from prefect.workers.base import BaseWorker
from pydantic import ValidationError

from penstock_prefect.settings import PenstockSettings
from penstock_prefect.settings import settings as configured

PREFIX = "PREFECT_INTEGRATIONS_PENSTOCK_"
COLLECTION, WORKER_TYPE = "penstock", "penstock-process"
AGAIN = "install penstock[prefect] again in this environment"


def parts() -> Iterator[Part]:
    """Each part once. What cannot be looked at is a fault, with the error."""
    for name, look in (
        ("API", _api),
        ("collection", _collection),
        ("settings", _settings),
        ("block", _block),
        ("worker type", _worker_type),
        ("work pools", _work_pools),
    ):
        yield _looked(f"prefect {name}", look)


def _looked(name: str, look: Callable[[str], Part]) -> Part:
    try:
        return look(name)
    except Exception as error:  # Prefect's parts raise what they like, and one that is broken hides no other
        text = " ".join(str(error).split())[:300]
        return Part(name, State.FAULT, f"cannot be looked at: {type(error).__name__}: {text}", AGAIN)


def _api(name: str) -> Part:
    if not PREFECT_API_URL.value():
        detail = "PREFECT_API_URL is not set: each process starts a server of its own, and only the store is shared"
        return Part(name, State.WARNING, detail, "prefect config set PREFECT_API_URL=…")
    with get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            detail = f"it does not answer ({type(error).__name__})"
            return Part(name, State.FAULT, detail, "see that `prefect version` and the UI work from here")
        version = client.api_version()
    return Part(name, State.OK, f"a server of Prefect {version} answers", facts={"version": version})


def _collection(name: str) -> Part:
    loaded = load_prefect_collections().get(COLLECTION)
    if loaded is None:
        return Part(name, State.FAULT, "Prefect does not find it: no worker type", AGAIN)
    if isinstance(loaded, Exception):
        return Part(name, State.FAULT, f"Prefect cannot load it: {loaded}", AGAIN)
    return Part(name, State.OK, "loaded: Prefect knows the integration")


def _settings(name: str) -> Part:
    try:
        here = configured()
        here.figures  # noqa: B018  # it is what raises on PENSTOCK_… variables
    except ValidationError as error:
        faults = "; ".join(f"{PREFIX}{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        return Part(name, State.FAULT, faults, "correct it wherever flows run: until then each run fails")
    except PenstockError as error:
        return Part(name, State.FAULT, str(error), "correct it wherever flows run: until then each run fails")
    known = [f"{PREFIX}{field.upper()}" for field in PenstockSettings.model_fields]
    unknown = sorted(variable for variable in os.environ if variable.startswith(PREFIX) and variable not in known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        remedy = f"did you mean {near[0]}?" if near else "take it out: nothing reads it"
        return Part(name, State.WARNING, f"{unknown[0]} is no setting of Penstock", remedy)
    source = _store_source(here)
    enforcement = here.figures.enforcement
    detail = f"deployment {here.deployment_name}, the store from {source or 'nowhere'}, enforcement {enforcement}"
    facts = {"deployment": here.deployment_name, "store_from": source, "enforcement": enforcement}
    if source is None:
        return Part(name, State.INACTIVE, f"{detail}: nothing is limited", f"set {PREFIX}STORE_URL", facts)
    if enforcement == "enforce":
        return Part(name, State.OK, detail, facts=facts)
    return Part(name, State.WARNING, f"{detail}: nothing waits", "set it to enforce when you have seen enough", facts)


def _store_source(here: PenstockSettings) -> str | None:
    if here.store_url is not None and here.store_url.get_secret_value():
        return "store_url"
    if here.store_block:
        return f"the block {here.store_block}"
    return "PENSTOCK_STORE_URL" if os.environ.get("PENSTOCK_STORE_URL") else None


def _block(name: str) -> Part:
    here = configured()
    if not here.store_block:
        return Part(name, State.INACTIVE, "none is named, and none is needed where there is a URL")
    if _store_source(here) == "store_url":
        return Part(name, State.INACTIVE, f"{here.store_block} is named, but store_url counts")
    try:
        here.configured_store_url  # noqa: B018  # asks the API for it
    except PenstockError as error:
        return Part(name, State.FAULT, str(error), "see `prefect block ls`")
    return Part(name, State.OK, f"{here.store_block} holds the store's URL")


def _worker_type(name: str) -> Part:
    if BaseWorker.get_worker_class_from_type(WORKER_TYPE) is None:
        return Part(name, State.FAULT, f"Prefect does not know {WORKER_TYPE}", AGAIN)
    return Part(name, State.OK, f"{WORKER_TYPE} can be started")


def _work_pools(name: str) -> Part:
    if not PREFECT_API_URL.value():
        return Part(name, State.INACTIVE, "not asked for: PREFECT_API_URL is not set")
    wanted = WorkPoolFilter(type=WorkPoolFilterType(any_=[WORKER_TYPE]))
    try:
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/work_pools/filter", json={"work_pools": wanted.model_dump(mode="json")})
            answer.raise_for_status()
    except httpx.HTTPError as error:
        return Part(name, State.WARNING, f"cannot be seen from here ({type(error).__name__})", "see `work-pool ls`")
    names = sorted(pool["name"] for pool in answer.json())
    if not names:
        return Part(name, State.INACTIVE, f"none of type {WORKER_TYPE}: runs wait in their own processes")
    return Part(name, State.OK, f"of type {WORKER_TYPE}: {', '.join(names)}", facts={"names": names})


if __name__ == "__main__":
    for part in parts():
        sys.stdout.write(json.dumps(part.as_dict()) + "\n")
