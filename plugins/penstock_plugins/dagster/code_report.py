"""What was read in a project's Python: definitions, runs, and whatever does not count or could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FindingKind = Literal["unread", "ignored", "refused", "differs"]
# The titles of their tables.
FINDINGS: dict[FindingKind, str] = {
    "unread": "Not to be read without running the code",
    "ignored": "Without effect in Dagster",
    "refused": "Refused by Dagster",
    "differs": "Without a counterpart here",
}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something of the code that is in no row, or not as it is written. `line` is None for a whole file."""

    kind: FindingKind
    file: str
    line: int | None
    subject: str
    reason: str

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that only the running code has; `why` it cannot be read."""

    why: str
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """An asset, op, check or graph. `name` is an asset's key with slashes, else the name that Dagster gives it.

    `pools` are those of its op, of which it takes `slots`; of a graph those of all its ops. `unread` names what is left
    out because only the running code knows it. `within_run`: what of executors under PATH holds it back in one run: how
    many ops go at once, where that is the same for all code locations, and the tag rules that match it.
    """

    kind: str
    name: str
    file: str
    line: int
    pools: tuple[str, ...] = ()
    slots: int = 1
    op_tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    unread: tuple[str, ...] = ()
    within_run: tuple[str, ...] = ()
    airflow: str | None = None
    prefect: str | None = None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What holds for the runs of a job, of a code location's jobs without an executor of their own, or of a schedule.

    `max_concurrent` is None where `bound` says what there is instead: `cpu_count`, `unlimited` or `unread`. The bounds
    are `inherited` where they are the code location's; the configuration's `ops` block says these for all jobs.
    """

    kind: str
    name: str
    file: str
    line: int
    executor: str | None = None
    bound: Literal["set", "cpu_count", "unlimited", "unread"] = "cpu_count"
    max_concurrent: int | None = None
    tag_concurrency_limits: tuple[Mapping[str, Any], ...] = ()
    inherited: bool = False
    run_tags: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    airflow: str | None = None
    prefect: str | None = None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class CodeReport:
    """All of it, in the order of files and lines. `of_all` is the one executor of all code locations, if it is one."""

    files: int
    definitions: tuple[Definition, ...]
    runs: tuple[Runs, ...]
    findings: tuple[Finding, ...]
    of_all: Runs | None = None

    @property
    def pools(self) -> tuple[str, ...]:
        """Each pool that a definition names, once."""
        return tuple(sorted({pool for each in self.definitions for pool in each.pools}))

    def as_json(self) -> dict[str, Any]:
        """Everything; what is None in a row is not there, or, where `unread` names it, not known."""
        return {"pools": list(self.pools), **asdict(self)}

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
        """For people: the definitions, the runs, and a table for each kind of finding."""
        found: list[tuple[str, tuple[str, ...], list[tuple[object, ...]]]] = [
            (
                f"Assets and ops: {len(self.definitions)} in {self.files} Python files",
                ("kind", "name", "pool", "op tags", "within a run", "Airflow", "Prefect", "where"),
                [_definition(row) for row in self.definitions],
            ),
            (
                "Runs",
                ("kind", "name", "at once", "tag limits", "run tags", "Airflow", "Prefect", "where"),
                [_runs(row) for row in self.runs],
            ),
        ]
        for kind, title in FINDINGS.items():
            rows = [(each.place, each.subject, each.reason) for each in self.findings if each.kind == kind]
            found.append((f"{title}: {len(rows)}", ("where", "what", "why"), list(rows)))
        return [entry for entry in found if entry[2]]


def _definition(row: Definition) -> tuple[object, ...]:
    slots = ":?" if "slots" in row.unread else f":{row.slots}" if row.slots != 1 else ""
    pools = ", ".join(f"{pool}{slots}" for pool in row.pools) or ("?" if "pool" in row.unread else None)
    within = "; ".join(row.within_run) or None
    return row.kind, row.name, pools, _tags(row.op_tags, row.unread), within, row.airflow, row.prefect, row.place


def at_once(row: Runs) -> object:
    """How many ops of a run execute together, for people."""
    return {"set": row.max_concurrent, "cpu_count": "CPU count", "unlimited": "unlimited", "unread": "?"}[row.bound]


def _runs(row: Runs) -> tuple[object, ...]:
    rules = "; ".join(map(rule_text, row.tag_concurrency_limits)) or None
    tags = _tags(row.run_tags, row.unread)
    return row.kind, row.name, at_once(row), rules, tags, row.airflow, row.prefect, row.place


def _tags(tags: Mapping[str, str], unread: tuple[str, ...]) -> str | None:
    shown = [f"{key}={value}" if value else key for key, value in tags.items()]
    shown += [f"{what.partition(' tag ')[2]}=?" for what in unread if " tag " in what]
    shown += ["?" for what in unread if what.endswith(" tags")]
    return ", ".join(shown) or None


def rule_text(rule: Mapping[str, Any]) -> str:
    """`database=warehouse: 1`; `database=*: 1` where each value is counted apart."""
    value = rule.get("value")
    if isinstance(value, str):
        return f"{rule['key']}={value}: {rule['limit']}"
    apart = isinstance(value, Mapping) and value.get("applyLimitPerUniqueValue")
    return f"{rule['key']}{'=*' if apart else ''}: {rule['limit']}"
