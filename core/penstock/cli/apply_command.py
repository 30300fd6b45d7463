"""`penstock apply`: put a configuration file in force."""

from __future__ import annotations

import sys
from typing import Any

import click

import penstock
from penstock import changes
from penstock.cli import EXIT_USAGE
from penstock.config import Concurrency, not_enforced_yet
from penstock.config_file import read_file
from penstock.errors import ConfigError, Fault


@click.command("apply")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--prune", is_flag=True, help="Delete explicit pool limits that FILE does not name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(store_url: str | None, file: str, prune: bool, yes: bool) -> int:
    """Make FILE the configuration: everything that a file can say, except pool limits that it does not name."""
    read = read_file(file)
    for warning in read.warnings:
        click.echo(f"{file}: warning: {warning}", err=True)
    if names := not_enforced_yet(read.concurrency):
        raise ConfigError([Fault("not enforced by this version of Penstock, so not applied", path=n) for n in names])
    with penstock.connect(store_url) as engine:
        version, before = engine.configuration(fresh=True)
        after, kept = changes.merged(read.concurrency, before, prune=prune)
        lines = difference(before, after)
        for line in lines:
            click.echo(line)
        for name in kept:
            click.echo(f"  pool {name} stays at {before.pools.limits[name].limit} (not in FILE; --prune deletes it)")
        if not lines:
            click.echo("nothing to change")
            return 0
        if not yes:
            if not sys.stdin.isatty():
                click.echo("penstock: nothing was changed; add --yes to apply without a terminal", err=True)
                return EXIT_USAGE
            if not click.confirm("Apply?"):
                click.echo("nothing was changed")
                return 0
        new = changes.apply(engine, after, expected_version=version)
        click.echo(f"applied as version {new}")
    return 0


def difference(before: Concurrency, after: Concurrency) -> list[str]:
    """What changes, a line each."""
    old, new = _flat(before.document()), _flat(after.document())
    lines = []
    for path in sorted(old.keys() | new.keys()):
        if path not in old:
            lines.append(f"+ {path}: {new[path]}")
        elif path not in new:
            lines.append(f"- {path}: {old[path]}")
        elif old[path] != new[path]:
            lines.append(f"~ {path}: {old[path]} -> {new[path]}")
    return lines


def _flat(value: Any, path: str = "concurrency") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{path}.{name}").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rules = {}
        for rule in value:
            kind = rule.get("value")
            suffix = "" if kind is None else "=*" if isinstance(kind, dict) else f"={kind}"
            rules[f"{path}[{rule['key']}{suffix}]"] = rule["limit"]
        return rules
    return {path: value}
