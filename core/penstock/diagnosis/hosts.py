"""Whether the hosts in this environment are under the limits. None of them is imported into this process."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from penstock.diagnosis.installation import STORE_URL
from penstock.diagnosis.part import Part, State

AIRFLOW_LEAST = (3, 1)
PREFECT_LEAST = (3, 6)
AIRFLOW_OPTIONS = ("store_url", "store_url_cmd", "store_url_secret", "conn_id")
LOOK_SECONDS = 120.0


def airflow() -> Iterator[Part]:
    """The provider: installed with Airflow, its policy found by Airflow, and a store named; then what Airflow loads.

    The latter is told by a fresh process with Airflow in it, as each of Airflow's own processes is one.
    """
    part = _airflow()
    yield part
    if part.state is not State.FAULT and importlib.util.find_spec("airflow") is not None:
        yield from _loaded("airflow", "penstock_airflow.diagnosis", "see that `airflow info` works")


def _loaded(host: str, module: str, remedy: str) -> Iterator[Part]:
    command = [sys.executable, "-m", module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_SECONDS, check=True)
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"part": ')]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = " ".join((getattr(error, "stderr", None) or str(error)).split())[-300:]
        yield Part(f"{host} parts", State.FAULT, f"{host.capitalize()} cannot be started here: {why}", remedy)
        return
    for one in told:
        yield Part(one["part"], State(one["state"]), one["detail"], one["remedy"], one["facts"])


def _airflow() -> Part:
    version = _version("apache-airflow-core") or _version("apache-airflow")
    if version is None:
        return Part("airflow", State.INACTIVE, "Airflow is not installed in this environment")
    if (fault := _unfit("airflow", f"Airflow {version}", version, AIRFLOW_LEAST)) is not None:
        return fault
    groups = {"policy": "airflow.policy", "provider": "apache_airflow_provider", "plugin": "airflow.plugins"}
    missing = [what for what, group in groups.items() if not _entry_point(group)]
    if missing:
        detail = f"Airflow {version} does not find Penstock's {' and '.join(missing)}"
        return Part("airflow", State.FAULT, detail, "install penstock[airflow] again in this environment")
    source = _airflow_url_source()
    if source is None:
        detail = f"Airflow {version}: the policy is installed, but inactive without a store"
        return Part("airflow", State.INACTIVE, detail, "set AIRFLOW__PENSTOCK__STORE_URL for all its components")
    return Part("airflow", State.OK, f"Airflow {version}: the policy is active, its store from {source}")


def prefect() -> Iterator[Part]:
    """The integration: installed with Prefect, found by it as a collection, and a store named; then what Prefect loads,
    told by a fresh process.
    """
    part = _prefect()
    yield part
    if part.state is not State.FAULT and importlib.util.find_spec("prefect") is not None:
        yield from _loaded("prefect", "penstock_prefect.diagnosis", "see that `prefect version` works")


def _prefect() -> Part:
    version = _version("prefect")
    if version is None:
        return Part("prefect", State.INACTIVE, "Prefect is not installed in this environment")
    if (fault := _unfit("prefect", f"Prefect {version}", version, PREFECT_LEAST)) is not None:
        return fault
    if not _entry_point("prefect.collections"):
        detail = f"Prefect {version} does not find Penstock's collection"
        return Part("prefect", State.FAULT, detail, "install penstock[prefect] again in this environment")
    own = "PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL"
    names = (own, "PREFECT_INTEGRATIONS_PENSTOCK_STORE_BLOCK", STORE_URL)
    source = next((name for name in names if os.environ.get(name)), None)
    if source is None:
        detail = f"Prefect {version}: inactive without a store, unless a profile or prefect.toml names one"
        return Part("prefect", State.INACTIVE, detail, f"set {own} wherever flows run")
    detail = f"Prefect {version}: flows and tasks under @limited are limited, their store from {source}"
    return Part("prefect", State.OK, detail)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unfit(name: str, shown: str, version: str, least: tuple[int, int]) -> Part | None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= least:
        return None
    wanted = ".".join(map(str, least))
    return Part(name, State.FAULT, f"{shown} is older than what Penstock works with", f"upgrade to {wanted} or later")


def _entry_point(group: str) -> bool:
    points = importlib.metadata.entry_points(group=group)
    return any(point.value.startswith(("penstock_airflow", "penstock_prefect")) for point in points)


def _airflow_url_source() -> str | None:
    """Where Airflow would find the store's URL: its environment, ours, or airflow.cfg; no secrets backend is asked."""
    for option in AIRFLOW_OPTIONS:
        if os.environ.get(variable := f"AIRFLOW__PENSTOCK__{option.upper()}"):
            return variable
    if os.environ.get(STORE_URL):
        return STORE_URL
    path = Path(
        os.environ.get("AIRFLOW_CONFIG")
        or Path(os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow") / "airflow.cfg"
    ).expanduser()
    section = _section(path, "penstock")
    return next((f"{path} ([penstock] {option})" for option in AIRFLOW_OPTIONS if section.get(option)), None)


def _section(path: Path, name: str) -> Mapping[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeError):
        return {}
    return dict(parser[name]) if parser.has_section(name) else {}
