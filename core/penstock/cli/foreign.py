"""Limits that come from another tool or go to one: the plugins asked, and one form of saying what became of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import click

from penstock.cli import EXIT_NO
from penstock.cli.plan_command import plain_faults
from penstock.config import Concurrency
from penstock.errors import ConfigError, Fault, PluginError
from penstock.hookspecs import ImportedConfiguration
from penstock.text import shown

strict_option = click.option(
    "--strict", is_flag=True, help="Exit 1 when a limit has no counterpart; the others are taken all the same."
)


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


def show(source: str, left_out: Sequence[Fault], notes: Sequence[str]) -> None:
    """On stderr: each limit without a counterpart, with why and what instead; then what means something else."""
    for fault in left_out:
        click.echo(f"{shown(source)}: no counterpart: {shown(str(fault))}", err=True)
    for note in notes:
        click.echo(f"{shown(source)}: {shown(note)}", err=True)


def as_dict(found: ImportedConfiguration) -> dict[str, object]:
    """The same, and where values come from, as plain JSON values."""
    return {
        "left_out": plain_faults(found.left_out),
        "notes": list(found.notes),
        "origins": dict(found.origins),
        "report": found.report and found.report.as_json(),
    }


def exit_code(found: ImportedConfiguration, *, strict: bool) -> int:
    """Of a command that did what it could."""
    return EXIT_NO if strict and found.left_out else 0
