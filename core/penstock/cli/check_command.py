"""`penstock check`: every fault of a configuration file, with its line."""

from __future__ import annotations

import json

import click

from penstock.cli import EXIT_NO, json_option
from penstock.cli.plan_command import plain_faults, show_warnings
from penstock.config_file import read_file
from penstock.errors import ConfigError, Fault
from penstock.text import shown


@click.command("check")
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def command(file: str, as_json: bool) -> int:
    """Read FILE and name everything that is wrong with it. Touches no store."""
    try:
        read = read_file(file)
        faults: tuple[Fault, ...] = ()
        warnings = read.warnings
    except ConfigError as error:
        faults, warnings = error.faults, ()
    if as_json:
        click.echo(json.dumps({"ok": not faults, "faults": plain_faults(faults), "warnings": plain_faults(warnings)}))
    else:
        show_warnings(file, warnings)
        for fault in faults:
            click.echo(f"{shown(file)}: {shown(str(fault))}")
        if not faults:
            click.echo(f"{shown(file)}: good")
    return EXIT_NO if faults else 0
