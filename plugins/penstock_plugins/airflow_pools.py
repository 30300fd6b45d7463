"""Airflow's pools, as `airflow pools export` writes them, as limits of Penstock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.claim import CAPACITY_MAX, can_name_pool
from penstock.errors import ConfigError, Fault
from penstock.hookspecs import ImportedConfiguration, hookimpl

KIND = "airflow-pools"
UNLIMITED = -1


@hookimpl(trylast=True)
def penstock_import_configuration(kind: str, source: str) -> ImportedConfiguration | None:
    """Each pool with its slots as an explicit limit. Raises ConfigError with every fault of the file."""
    return imported(_read(source)) if kind == KIND else None


def imported(pools: Mapping[str, Any]) -> ImportedConfiguration:
    """The limits of what an export holds: name → slots, description, include_deferred. Raises ConfigError."""
    limits: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    unlimited, unnamable, freed = [], [], []
    for name, pool in pools.items():
        slots = pool.get("slots") if isinstance(pool, Mapping) else None
        if type(slots) is not int or slots < UNLIMITED:
            faults.append(Fault(f"slots {slots!r}: a whole number of at least {UNLIMITED} is expected", path=name))
        elif slots == UNLIMITED or slots > CAPACITY_MAX:
            unlimited.append(name)
        elif not can_name_pool(name):
            unnamable.append(name)
        else:
            limits[name] = {"limit": slots} | ({"description": text} if (text := pool.get("description")) else {})
            if not pool.get("include_deferred"):
                freed.append(name)
    if faults:
        raise ConfigError(faults)
    notes = [
        (unlimited, f"Unlimited in Airflow, or above {CAPACITY_MAX} slots, so their limits here stay as they are"),
        (unnamable, "Left out, since a pool of Penstock has no white space in its name and no `:digits` at its end"),
        (freed, "In Airflow a task that defers gives its slots back; here it keeps them while its job runs elsewhere"),
    ]
    return ImportedConfiguration(
        {"pools": {"limits": limits}}, tuple(f"{text}: {_listed(names)}." for names, text in notes if names)
    )


def _read(path: str) -> Mapping[str, Any]:
    try:
        pools = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Fault(f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise ConfigError([Fault(f"not the JSON that `airflow pools export` writes: {error}")]) from None
    if not isinstance(pools, dict):
        raise ConfigError([Fault("not what `airflow pools export` writes: pool names with their slots are expected")])
    return pools


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))
