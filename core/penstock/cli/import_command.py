"""`penstock import`: the limits of another tool, from what it exports."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import click

import penstock
from penstock import changes
from penstock.cli.asking import declined
from penstock.cli.plan_command import show_plan
from penstock.cli.text import shown
from penstock.config import Concurrency, PoolLimit
from penstock.errors import ConfigError, Fault, PluginError
from penstock.hookspecs import ImportedConfiguration

DEFAULT_POOL = "default_pool"


@click.group("import")
def command() -> None:
    """Take over the limits of another tool from what it exports."""


@command.command("airflow-pools")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--default-pool", is_flag=True, help="Also `default_pool`, which every task is in that names no pool.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def airflow_pools(store_url: str | None, file: str, default_pool: bool, yes: bool) -> int:
    """Set a limit for each pool in FILE, which `airflow pools export` wrote. Other limits stay as they are."""
    limits = _limits("airflow-pools", file)
    if not default_pool and limits.pop(DEFAULT_POOL, None) is not None:
        click.echo(f"{shown(file)}: {DEFAULT_POOL} is left out; --default-pool takes it, too.", err=True)
    return _take(store_url, limits, yes=yes)


@command.command("prefect-limits")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--api-url", metavar="URL", help="Ask this API of Prefect; without FILE by default PREFECT_API_URL.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def prefect_limits(store_url: str | None, file: str | None, api_url: str | None, yes: bool) -> int:
    """Set a limit for each global and each tag limit of Prefect. Other limits stay as they are.

    FILE is what `prefect gcl ls -o json` wrote, or another of Prefect's lists. An API is asked with the credentials in
    PREFECT_API_AUTH_STRING or PREFECT_API_KEY.
    """
    if file is not None and api_url is not None:
        raise click.UsageError("FILE or --api-url, not both")
    source = file or api_url or os.environ.get("PREFECT_API_URL")
    if not source:
        raise click.UsageError("name a FILE, or set --api-url or PREFECT_API_URL")
    if file is None:
        source = _api_address(source)
    return _take(store_url, _limits("prefect-limits", source), yes=yes)


def _api_address(url: str) -> str:
    """The URL, which is shown from now on: it must hold no password."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise click.UsageError("the API's URL begins with http:// or https://")
    if "@" in address.netloc:
        raise click.UsageError("user and password belong into PREFECT_API_AUTH_STRING, not into the API's URL")
    return url


def _limits(kind: str, source: str) -> dict[str, PoolLimit]:
    """What the plugin for it finds there, its notes said. Raises ConfigError."""
    found = imported(kind, source)
    for note in found.notes:
        click.echo(f"{shown(source)}: {shown(note)}", err=True)
    return dict(checked(source, found).pools.limits)


def _take(store_url: str | None, limits: Mapping[str, PoolLimit], *, yes: bool) -> int:
    """Show what these limits change, ask, and set them."""
    with penstock.connect(store_url) as engine:
        version, before = engine.configuration(fresh=True)
        plan = changes.plan(engine, _with_pools(before, limits), prune=True)
        show_plan(plan)
        if not plan.changes:
            return 0
        if (code := declined("Import?", yes=yes)) is not None:
            return code
        click.echo(f"imported as version {changes.apply(engine, plan.after, expected_version=version)}")
    return 0


def imported(kind: str, source: str, options: Mapping[str, str] | None = None) -> ImportedConfiguration:
    """What the plugin for this kind makes of the source. Raises ConfigError and PluginError."""
    from penstock.hooks import installed_plugins

    try:
        found: ImportedConfiguration | None = installed_plugins().hook.penstock_import_configuration(
            kind=kind, source=source, options=options or {}
        )
    except ConfigError as error:
        raise ConfigError([Fault(f"{source}: {fault}") for fault in error.faults]) from None
    if found is None:
        raise PluginError(f"no plugin reads {kind}: is the one that does named in PENSTOCK_PLUGINS_DISABLED?")
    return found


def checked(source: str, found: ImportedConfiguration) -> Concurrency:
    """What a plugin made of it, checked as a file is. Raises ConfigError."""
    from penstock.config_file import read

    try:
        return read(json.dumps({"concurrency": found.concurrency})).concurrency
    except ConfigError as error:
        faults = [Fault(f"{source}: {fault.path}: {fault.message}") for fault in error.faults]
        raise ConfigError(faults) from None


def _with_pools(concurrency: Concurrency, limits: Mapping[str, PoolLimit]) -> Concurrency:
    """The same configuration with these limits; a pool keeps its granularity, and its description where none comes."""
    for name, new in limits.items():
        own = concurrency.pools.limits.get(name, new)
        update = {"limit": new.limit, "description": new.description or own.description}
        concurrency = concurrency.with_pool(name, own.model_copy(update=update))
    return concurrency
