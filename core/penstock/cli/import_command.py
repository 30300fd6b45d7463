"""`penstock import`: the limits of another tool, from what it exports."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any
from urllib.parse import urlsplit

import click

import penstock
from penstock import changes
from penstock.cli import json_option
from penstock.cli.asking import declined
from penstock.cli.foreign import as_dict, checked, exit_code, imported, show, strict_option
from penstock.cli.plan_command import show_plan
from penstock.config import Concurrency, PoolLimit


@click.group("import")
def command() -> None:
    """Take over the limits of another tool from what it exports. What has no counterpart is named, with what to do."""


def _import_options(function: Callable[..., Any]) -> Callable[..., Any]:
    yes = click.option("--yes", is_flag=True, help="Do not ask.")
    return reduce(
        lambda decorated, option: option(decorated), (click.pass_obj, json_option, yes, strict_option), function
    )


@command.command("airflow-pools")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--default-pool", is_flag=True, help="Also `default_pool`, which every task is in that names no pool.")
@_import_options
def airflow_pools(store_url: str | None, file: str, default_pool: bool, strict: bool, yes: bool, as_json: bool) -> int:
    """Set a limit for each pool in FILE, which `airflow pools export` wrote. Other limits stay as they are."""
    options = {"default_pool": "true"} if default_pool else {}
    return _take(store_url, "airflow-pools", file, options, strict=strict, yes=yes, as_json=as_json)


@command.command("prefect-limits")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--api-url", metavar="URL", help="Ask this API of Prefect; without FILE by default PREFECT_API_URL.")
@_import_options
def prefect_limits(
    store_url: str | None, file: str | None, api_url: str | None, strict: bool, yes: bool, as_json: bool
) -> int:
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
    return _take(store_url, "prefect-limits", source, {}, strict=strict, yes=yes, as_json=as_json)


def _api_address(url: str) -> str:
    """The URL, which is shown from now on: it must hold no password."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise click.UsageError("the API's URL begins with http:// or https://")
    if "@" in address.netloc:
        raise click.UsageError("user and password belong into PREFECT_API_AUTH_STRING, not into the API's URL")
    return url


def _take(
    store_url: str | None,
    kind: str,
    source: str,
    options: Mapping[str, str],
    *,
    strict: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Say what the plugin for it finds there, show what these limits change, ask, and set them. Raises ConfigError."""
    found = imported(kind, source, options)
    limits = checked(source, found).pools.limits
    if not as_json:
        show(source, found.left_out, found.notes)
    version = None
    with penstock.connect(store_url) as engine:
        expected, before = engine.configuration(fresh=True)
        plan = changes.plan(engine, _with_pools(before, limits), prune=True)
        if not as_json:
            show_plan(plan)
        if plan.changes:
            if (code := declined("Import?", yes=yes)) is not None:
                return code
            version = changes.apply(engine, plan.after, expected_version=expected)
    if as_json:
        click.echo(json.dumps({**as_dict(found), **plan.as_dict(), "imported_as": version}))
    elif version is not None:
        click.echo(f"imported as version {version}")
    return exit_code(found, strict=strict)


def _with_pools(concurrency: Concurrency, limits: Mapping[str, PoolLimit]) -> Concurrency:
    """The same configuration with these limits; a pool keeps its granularity, and its description where none comes."""
    for name, new in limits.items():
        own = concurrency.pools.limits.get(name, new)
        update = {"limit": new.limit, "description": new.description or own.description}
        concurrency = concurrency.with_pool(name, own.model_copy(update=update))
    return concurrency
