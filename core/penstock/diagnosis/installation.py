"""What this environment says: settings and where each came from, enforcement, plugins."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

from penstock import settings
from penstock.diagnosis.part import Part, State
from penstock.errors import ClaimError
from penstock.hooks import DISABLED_VARIABLE, Plugins, disabled_plugins

STORE_URL, DEPLOYMENT, HOME = "PENSTOCK_STORE_URL", "PENSTOCK_DEPLOYMENT", "PENSTOCK_HOME"
VARIABLES = {STORE_URL, DEPLOYMENT, HOME, DISABLED_VARIABLE, *settings.ENVIRONMENT.values()}
OURS = ("PENSTOCK_LEASE_ID", "PENSTOCK_FENCES")
"""What `penstock run` gives to its command."""


def installation_parts() -> Iterator[Part]:
    """Settings, enforcement, plugins."""
    yield from _settings()
    yield from _plugins()


def url_source(given: str | None) -> str:
    """Where the store's URL comes from."""
    return "--store" if given else STORE_URL if os.environ.get(STORE_URL) else "default"


def _settings() -> Iterator[Part]:
    try:
        chosen = settings.Settings.from_environment()
    except ClaimError as error:
        yield Part("settings", State.FAULT, str(error), "correct or unset it: nothing starts with it")
        return
    rows = [
        {
            "name": name,
            "value": list(value) if isinstance(value := getattr(chosen, name), tuple) else value,
            "from": variable if (variable := settings.ENVIRONMENT.get(name, "")) in os.environ else "default",
        }
        for name in (entry.name for entry in fields(chosen))
    ]
    name = settings.deployment(host="process")
    rows.append({"name": "deployment", "value": name, "from": DEPLOYMENT if os.environ.get(DEPLOYMENT) else "default"})
    changed = sum(row["from"] != "default" for row in rows)
    yield Part("settings", State.OK, f"{changed} of {len(rows)} not at their defaults", facts={"settings": rows})
    yield from _unknown_variables()
    match chosen.enforcement:
        case "enforce":
            yield Part("enforcement", State.OK, "enforce: claims wait for their slots")
        case "observe":
            detail = "observe: nothing waits here; what would have waited is recorded"
            yield Part("enforcement", State.WARNING, detail, "PENSTOCK_ENFORCEMENT=enforce when you have seen enough")
        case "off":
            detail = "off: what runs in this environment is not limited and not counted"
            yield Part("enforcement", State.INACTIVE, detail, "unset PENSTOCK_ENFORCEMENT, or set it to enforce")


def _unknown_variables() -> Iterator[Part]:
    for variable in sorted(os.environ):
        if not variable.startswith("PENSTOCK_") or variable.startswith("PENSTOCK_TEST_"):
            continue
        if variable not in VARIABLES and variable not in OURS:
            near = difflib.get_close_matches(variable, VARIABLES, 1)
            remedy = f"did you mean {near[0]}?" if near else "nothing reads it: unset it"
            yield Part("settings", State.WARNING, f"{variable} is no setting of Penstock", remedy)


def _plugins() -> Iterator[Part]:
    entry_points = sorted(importlib.metadata.entry_points(group="penstock"))
    counts, disabled = Counter(entry_point.name for entry_point in entry_points), disabled_plugins()
    for entry_point in entry_points:
        name, part = entry_point.name, f"plugin {entry_point.name}"
        origin = f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist is not None else "unknown"
        facts = {"name": name, "module": entry_point.value, "distribution": origin}
        remedy = f"mend or uninstall it, or set {DISABLED_VARIABLE}={name}: until then nothing starts"
        if name in disabled:
            yield Part(part, State.INACTIVE, f"disabled by {DISABLED_VARIABLE}", facts=facts)
        elif counts[name] > 1:
            detail = f"two plugins are installed by this name, one from {origin}"
            yield Part(part, State.FAULT, detail, "uninstall one of them: until then nothing starts", facts)
        else:
            try:
                Plugins().register(entry_point.load(), name)
            except Exception as error:
                detail = f"{origin}: {type(error).__name__}: {error}"
                yield Part(part, State.FAULT, detail, remedy, facts)
            else:
                yield Part(part, State.OK, f"loaded from {origin}", facts=facts)
    for name in disabled:
        if not counts[name]:
            detail = f"{DISABLED_VARIABLE} names it, but no plugin goes by that name"
            yield Part(f"plugin {name}", State.WARNING, detail, "take it out, or correct the name")
