"""The command line: one file per command group, imported when its command is asked for."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from penstock import errors

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_STORE = 69
EXIT_REFUSED = 75
EXIT_LOST = 76

EXIT_CODES: list[tuple[type[errors.PenstockError], int]] = [
    (errors.ConfigError, EXIT_NO),
    (errors.ConfigChanged, EXIT_NO),
    (errors.ClaimError, EXIT_USAGE),
    (errors.StoreUnavailable, EXIT_STORE),
    (errors.SchemaMismatch, EXIT_STORE),
    (errors.LeaseLost, EXIT_LOST),
    (errors.Blocked, EXIT_REFUSED),
    (errors.WaitTimeout, EXIT_REFUSED),
    (errors.ImpossibleClaim, EXIT_REFUSED),
]

COMMANDS = ["apply", "check", "db", "demo", "limits", "pools", "run", "status"]


class LazyGroup(click.Group):
    """Finds `penstock NAME` as the attribute `NAME` of `penstock.cli.NAME_command`, then in the plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *self._of_plugins().commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command: click.Command = importlib.import_module(f"penstock.cli.{cmd_name}_command").command
            return command
        return self._of_plugins().commands.get(cmd_name)

    @staticmethod
    def _of_plugins() -> click.Group:
        from penstock.hooks import installed_plugins

        group = click.Group()
        installed_plugins().hook.penstock_add_command(group=group)
        return group


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", "store_url", metavar="URL", help="The slot store; else PENSTOCK_STORE_URL, else a local file.")
@click.version_option(package_name="penstock")
@click.pass_context
def penstock(context: click.Context, store_url: str | None) -> None:
    """Concurrency limits shared by Airflow, Prefect and plain processes."""
    context.obj = store_url


def main() -> NoReturn:
    """Run the command line; an error of Penstock is one clear text on stderr and its exit code."""
    logging.basicConfig(level=logging.WARNING, format="penstock: %(message)s", stream=sys.stderr)
    try:
        code = penstock.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("penstock: stopped", err=True)
        code = EXIT_NO
    except errors.PenstockError as error:
        click.echo(f"penstock: {error}", err=True)
        code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_NO)
    sys.exit(code or 0)


json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
