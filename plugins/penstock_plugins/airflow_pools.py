"""Airflow's pools, as `airflow pools export` writes them, as limits of Penstock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.claim import CAPACITY_MAX, can_name_pool
from penstock.errors import ConfigError, Fault
from penstock.hookspecs import ImportedConfiguration, hookimpl

from penstock_plugins import exports

KIND = "airflow-pools"
COMMAND = "airflow pools export"
DEFAULT_POOL = "default_pool"
UNLIMITED = -1


@hookimpl(trylast=True)
def penstock_import_configuration(kind: str, source: str, options: Mapping[str, str]) -> ImportedConfiguration | None:
    """Each pool with its slots as an explicit limit. Raises ConfigError with every fault of the file.

    Option: `default_pool`, given at all, takes that one, too.
    """
    if kind != KIND:
        return None
    pools = exports.read(source, COMMAND)
    if not isinstance(pools, dict):
        raise exports.unlike(COMMAND, "pool names with their slots are")
    return imported(pools, default_pool="default_pool" in options)


def imported(pools: Mapping[str, Any], *, default_pool: bool) -> ImportedConfiguration:
    """The limits of what an export holds: name → slots, description, include_deferred. Raises ConfigError."""
    limits: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    left_out: list[Fault] = []
    unlimited, freed = [], []
    for name, pool in pools.items():
        slots = pool.get("slots") if isinstance(pool, Mapping) else None
        if type(slots) is not int or slots < UNLIMITED:
            faults.append(Fault(f"slots {slots!r}: a whole number of at least {UNLIMITED} is expected", path=name))
        elif slots == UNLIMITED or slots > CAPACITY_MAX:
            unlimited.append(name)
        elif not can_name_pool(name):
            why = "a pool of Penstock has no white space in its name and no `:digits` at its end"
            remedy = f"name it otherwise in the DAGs, and `penstock pools set NAME {slots}`"
            left_out.append(Fault(f"{why}; {remedy}", path=f"pool {name!r} of {slots} slots"))
        elif name == DEFAULT_POOL and not default_pool:
            continue
        else:
            limits[name] = {"limit": slots} | ({"description": text} if (text := pool.get("description")) else {})
            if not pool.get("include_deferred"):
                freed.append(name)
    if faults:
        raise ConfigError(faults)
    notes = [
        (unlimited, f"Unlimited in Airflow, or above {CAPACITY_MAX} slots, so their limits here stay as they are"),
        (freed, "In Airflow a task that defers gives its slots back; here it keeps them while its job runs elsewhere"),
    ]
    told = [f"{text}: {_listed(names)}." for names, text in notes if names]
    if DEFAULT_POOL in pools and not default_pool:
        told.append(f"{DEFAULT_POOL} is left out, in which every task is that names no pool; --default-pool takes it.")
    return ImportedConfiguration({"pools": {"limits": limits}}, tuple(told), left_out=tuple(left_out))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))
