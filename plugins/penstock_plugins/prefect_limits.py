"""Prefect's concurrency limits, from its API or as its commands list them, as limits of Penstock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from penstock.claim import CAPACITY_MAX, can_name_pool
from penstock.errors import ConfigError, Fault
from penstock.hookspecs import ImportedConfiguration, hookimpl

from penstock_plugins import exports, prefect_api

KIND = "prefect-limits"
COMMAND = "prefect gcl ls -o json"
TAG, DEPLOYMENT = "tag:", "deployment:"
LISTED_AT_MOST = 100
Row = Mapping[str, Any]
NOTHING = type(None)
TYPES: Mapping[str, tuple[type, ...]] = {
    "slot_decay_per_second": (int, float, NOTHING),
    "global_concurrency_limit": (dict, NOTHING),
    "concurrency_options": (dict, NOTHING),
}
"""What is read of a row beside its limit, where the row has it."""


@hookimpl(trylast=True)
def penstock_import_configuration(kind: str, source: str) -> ImportedConfiguration | None:
    """Each global limit and each tag limit as a pool of that name. Raises ConfigError with every fault found.

    `source` is the URL of Prefect's API, which is asked with the credentials in `PREFECT_API_AUTH_STRING` or
    `PREFECT_API_KEY`, or a file that holds the JSON of Prefect's `ls` commands.
    """
    if kind != KIND:
        return None
    if source.startswith(("http://", "https://")):
        rows, unseen = prefect_api.everything(source)
        return imported(rows, unseen)
    listed = exports.read(source, COMMAND)
    rows = [listed] if isinstance(listed, dict) else listed  # `prefect gcl inspect -o json`
    if not isinstance(rows, list):
        raise exports.unlike(COMMAND, "a list of limits is")
    return imported(rows)


def imported(rows: Sequence[Any], unseen: Iterable[Fault] = ()) -> ImportedConfiguration:
    """The limits of what Prefect lists, with a note on each that means something else here. Raises ConfigError.

    `unseen`: what else may hold limits.
    """
    reading = _Reading(rows)
    for number, row in enumerate(rows, start=1):
        reading.take(number, row)
    if reading.faults:
        raise ConfigError(reading.faults)
    return ImportedConfiguration(
        {"pools": {"limits": reading.limits}}, tuple(reading.notes), left_out=(*unseen, *reading.left_out)
    )


class _Reading:
    """Row after row: `limits`, `notes`, `left_out` and `faults` grow."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.limits: dict[str, dict[str, int]] = {}
        self.notes: list[str] = []
        self.left_out: list[Fault] = []
        self.faults: list[Fault] = []
        self._known: dict[str, Any] = {}
        self._told_by_deployments = {
            f"{DEPLOYMENT}{row.get('id')}"
            for row in rows
            if isinstance(row, Mapping) and _kind(row) is _Reading._deployment
        }
        if sum(isinstance(row, Mapping) and "slot_decay_per_second" in row for row in rows) == LISTED_AT_MOST:
            self._left_out(
                "limits beyond these",
                f"`prefect gcl ls` lists {LISTED_AT_MOST} at most, as many as are here; the API gives all: `--api-url`",
            )

    def take(self, number: int, row: Any) -> None:
        read = _kind(row) if isinstance(row, Mapping) else None
        if read is None:
            self._fault(f"entry {number}", "nothing that Prefect lists with a limit")
        elif odd := [key for key, kinds in TYPES.items() if not isinstance(row.get(key), kinds)]:
            self._fault(f"entry {number}", f"{odd[0]} {row[odd[0]]!r} is not as Prefect writes it")
        else:
            read(self, row)

    def _global(self, row: Row) -> None:
        name, limit, decay = str(row["name"]), row.get("limit"), row["slot_decay_per_second"]
        if name.startswith(DEPLOYMENT):
            if name not in self._told_by_deployments:
                self._of_runs(name, "prefect/deployment", "NAME", limit)
        elif decay:
            why = f"its slots come back at {decay:g} a second, which bounds a rate, and Penstock what runs at once"
            self._left_out(name, f"{why}; keep Prefect's rate_limit() for it")
        else:
            self._pool(name, limit, active=row.get("active", True))

    def _tag(self, row: Row) -> None:
        self._pool(f"{TAG}{row['tag']}", row["concurrency_limit"])

    def _deployment(self, row: Row) -> None:
        if (limit := (row.get("global_concurrency_limit") or {}).get("limit")) is not None:
            name = row.get("name", "NAME")
            self._of_runs(f"deployment {name}", "prefect/deployment", name, limit)
            if (row["concurrency_options"] or {}).get("collision_strategy") == "CANCEL_NEW":
                self._note(
                    f'deployment {name}: for CANCEL_NEW write @limited(on_blocked="skip"): such a run ends as '
                    "Completed, named Skipped"
                )

    def _work_pool(self, row: Row) -> None:
        if (limit := row["concurrency_limit"]) is not None:
            self._of_runs(f"work pool {row['name']}", "prefect/work_pool", row["name"], limit)

    def _work_queue(self, row: Row) -> None:
        if row["concurrency_limit"] is not None:
            where = f"{row['work_pool_name']}/{row['name']}" if row.get("work_pool_name") else row["name"]
            why = "runs have no tag of their queue, and Prefect goes on counting"
            self._left_out(f"work queue {where}", f"{why}; to share it give its deployments a tag, and limit that")

    def _of_runs(self, what: str, key: str, value: str, limit: Any) -> None:
        rule = json.dumps({"key": key, "value": value, "limit": limit})
        why = "it bounds runs, and Prefect goes on counting"
        self._left_out(
            what, f"{why}; to share it put the flows under @limited and add {rule} to runs.tag_concurrency_limits"
        )

    def _pool(self, name: str, limit: Any, *, active: bool = True) -> None:
        if name in self._known:  # a tag limit is among the global ones, too
            if limit != self._known[name]:
                self._fault(name, f"it is there twice, with {self._known[name]} and {limit} slots")
            return
        self._known[name] = limit
        if type(limit) is not int or limit < 0:
            self._fault(name, f"limit {limit!r}: a whole number of at least 0 is expected")
        elif not active:
            why = "it is not active, so nothing waits for it"
            self._left_out(name, f"{why}; `penstock pools set {name} {limit}` puts it in force")
        elif limit > CAPACITY_MAX:
            self._left_out(name, f"a limit is at most {CAPACITY_MAX} here; without one a pool is not limited")
        elif not can_name_pool(name):
            why = "a pool of Penstock has no white space in its name and no `:digits` at its end"
            self._left_out(name, f"{why}; choose another, and `penstock pools set NAME {limit}`")
        else:
            self.limits[name] = {"limit": limit}
            if name.startswith(TAG):
                self._note(
                    f'{name}: no tag takes slots of a pool here; put @limited("{name}") above the tasks that have it'
                )
                if limit == 0:
                    self._note(f"{name}: with 0 slots Prefect fails such tasks at once; here they wait for a change")

    def _left_out(self, what: str, why: str) -> None:
        self.left_out.append(Fault(why, path=what))

    def _note(self, text: str) -> None:
        self.notes.append(f"{text}.")

    def _fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(message, path=path))


def _kind(row: Row) -> Callable[[_Reading, Row], None] | None:
    """How to read a row: Prefect's lists tell by their keys what they are of."""
    for keys, read in (
        (("name", "slot_decay_per_second"), _Reading._global),
        (("tag", "concurrency_limit"), _Reading._tag),
        (("flow_id", "concurrency_options"), _Reading._deployment),
        (("name", "concurrency_limit", "base_job_template"), _Reading._work_pool),
        (("name", "concurrency_limit", "work_pool_id"), _Reading._work_queue),
    ):
        if all(key in row for key in keys):
            return read
    return None
