"""Where Dagster's settings stand: a dagster.yaml, Helm values, Dagster+ settings, or the folder DAGSTER_HOME."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from penstock.config_file import read_document, read_text
from penstock.errors import ConfigError, Fault
from penstock.yaml_lines import Lines, Location, path_of

FILE_NAME = "dagster.yaml"
OF_A_HOME = ("history", "storage", "schedules", ".logs_queue", ".telemetry", ".nux")
"""What Dagster makes in its home; a folder with one of them may do without the file."""

HELM_KEYS = frozenset(
    {
        "additionalInstanceConfig",
        "computeLogManager",
        "dagit",
        "dagster-user-deployments",
        "dagsterDaemon",
        "dagsterWebserver",
        "generatePostgresqlPasswordSecret",
        "postgresqlSecretName",
        "runLauncher",
    }
)
READ = frozenset({"concurrency", "run_queue", "run_coordinator", "run_monitoring"})
READ_OF_HELM = frozenset({"dagsterDaemon", "additionalInstanceConfig"})
PLUS_KEYS = frozenset(
    {
        "branch_deployment_tag_concurrency_limits",
        "max_concurrent_branch_deployment_runs",
        "max_concurrent_runs_per_branch_deployment",
        "non_isolated_runs",
        "sso_default_role",
    }
)


class Form(StrEnum):
    """What a source is."""

    OPEN = "dagster.yaml"
    HELM = "Helm values"
    PLUS = "Dagster+ settings"


@dataclass(frozen=True, slots=True)
class Source:
    """Settings as they are spelled in a dagster.yaml, and where each stands in the file that was read.

    `faults` are those of single places. `paths`: place → how the file itself spells it, where that is different.
    """

    form: Form
    file: str
    document: dict[str, Any]
    lines: Lines
    faults: tuple[Fault, ...] = ()
    paths: Mapping[Location, str] = field(default_factory=dict)
    home: Path | None = None

    def fault(self, message: str, *location: str | int) -> Fault:
        """Something to say of a place, with its line and path."""
        return Fault(message, self.lines.of(location), self.path(location))

    def path(self, location: Location) -> str:
        """A place as the file spells it."""
        for size in range(len(location), 0, -1):
            if location[:size] in self.paths:
                rest = path_of(location[size:])
                return self.paths[location[:size]] + (f".{rest}" if rest and not rest.startswith("[") else rest)
        return path_of(location)

    def origin(self, *location: str | int) -> str:
        """Where a value comes from, in words."""
        return f"{self.file}, line {self.lines.of(location)}: {self.path(location)}"


def find(given: str) -> Source:
    """The settings at a path. Raises ConfigError when there are none or they cannot be read."""
    path = Path(given)
    try:
        home = path if path.is_dir() else None
    except OSError as error:  # of a path that no file can have
        raise ConfigError([Fault(f"cannot be read: {error.strerror}")]) from None
    if home is not None:
        path = home / FILE_NAME
        if not path.exists():
            if not any((home / name).exists() for name in OF_A_HOME):
                raise ConfigError([Fault(f"no {FILE_NAME} in this folder, and nothing else that a DAGSTER_HOME has")])
            return Source(Form.OPEN, FILE_NAME, {}, Lines(), home=home)
    document, lines, faults = read_document(read_text(path))
    document = document or {}
    of_interest = tuple(fault for fault in faults if _is_read(fault))
    return Source(_form(document), path.name, document, lines, of_interest, home=home)


def _is_read(fault: Fault) -> bool:
    """Whether a fault concerns what limits: what is wrong in other blocks is Dagster's business."""
    names = re.split(r"[.\[]", fault.path.removeprefix("dagster."))
    return names[0] in READ | READ_OF_HELM or (len(names) == 1 and "stands twice" in fault.message)


def _form(document: Mapping[str, Any]) -> Form:
    inner = document.get("dagster")
    if isinstance(inner, dict) and HELM_KEYS & inner.keys():
        return Form.HELM
    block = document.get("concurrency")
    if HELM_KEYS & document.keys() or (isinstance(block, dict) and _camel(block)):
        return Form.HELM
    return Form.PLUS if PLUS_KEYS & document.keys() else Form.OPEN


def _camel(block: Mapping[str, Any]) -> bool:
    """Whether a `concurrency:` block is spelled as the chart spells it."""
    parts = [part for part in block.values() if isinstance(part, dict)]
    keys = {key for part in parts for key in part}
    return "enabled" in block or bool(keys & {"defaultLimit", "opGranularityRunBuffer", "maxConcurrentRuns"})
