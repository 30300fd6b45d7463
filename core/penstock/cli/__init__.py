"""The command line: one file per command group, imported when its command is asked for."""

from __future__ import annotations

import importlib
import io
import logging
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from penstock import errors
from penstock.text import shown

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_CHANGES = 3
EXIT_STORE = 69
EXIT_REFUSED = 75
EXIT_LOST = 76

EXIT_CODES: list[tuple[type[errors.PenstockError], int]] = [
    (errors.ConfigError, EXIT_NO),
    (errors.ConfigChanged, EXIT_NO),
    (errors.Ambiguous, EXIT_USAGE),
    (errors.ClaimError, EXIT_USAGE),
    (errors.LimitNotSettable, EXIT_USAGE),
    (errors.StoreUnavailable, EXIT_STORE),
    (errors.SchemaMismatch, EXIT_STORE),
    (errors.LeaseLost, EXIT_LOST),
    (errors.Blocked, EXIT_REFUSED),
    (errors.WaitTimeout, EXIT_REFUSED),
    (errors.ImpossibleClaim, EXIT_REFUSED),
]

# Name -> what `--help` says, so that it need not load them (tests hold each to the command's own words).
COMMANDS = {
    "apply": "Make FILE the configuration: everything that a file can say, except pool limits that it does not name.",
    "check": "Read FILE and name everything that is wrong with it.",
    "completion": "Print the completion script of a shell, for its start-up file.",
    "db": "The tables of the store.",
    "demo": "Run a real Airflow DAG and a real Prefect flow under the limits of one dagster.yaml block.",
    "doctor": "Name each part, whether it is really active, and what to do where it is not sound.",
    "explain": "Say why ID waits, for whom and behind whom, or what it holds.",
    "export": "Write the limits as a penstock.yaml, or in the form of another tool.",
    "free": "End the leases of ID and withdraw its waiters, after asking.",
    "import": "Take over the limits of another tool from what it exports.",
    "janitor": "Reap what died, ask after runs, grant what is free, prune; until SIGTERM or SIGINT.",
    "limits": "Every limit: pools, the run total, tag rules, and those in use by value.",
    "migrate": "Write the limits of an orchestrator that is left as a penstock.yaml.",
    "plan": "Show what `apply` would change and whom it would touch.",
    "pools": "The pools and their limits.",
    "run": "Run COMMAND while holding slots; its exit code is ours.",
    "status": "Limits, leases, waiters and sessions, as they are now.",
    "ui": "Serve the concurrency page: limits, holders, queues; with a token also the means to change them.",
}


class LazyGroup(click.Group):
    """Finds `penstock NAME` as the attribute `command` of `penstock.cli.NAME_command`, then in the plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *self._of_plugins().commands})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        plugins = {name: command.get_short_help_str() for name, command in self._of_plugins().commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted((plugins | COMMANDS).items()))

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


def main(
    arguments: Sequence[str] | None = None,
    *,
    prog_name: str = "penstock",
    store: str | None = None,
    store_from: str | None = None,
) -> NoReturn:
    """Run the command line; an error of Penstock is one clear text on stderr and its exit code.

    A host's own command line gives the words (else `sys.argv` has them), its name, and the store where `--store` names
    none: its URL ("": the host has none, which only `doctor` takes) and, in words, where the host has it from.
    """
    given = {} if store is None else {"store_url": store, "doctor": {"store_from": store_from}}
    _log_to_stderr()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = penstock.main(arguments, prog_name=prog_name, standalone_mode=False, default_map=given)
    except click.ClickException as error:
        _show_usage_error(error)
        code = error.exit_code
    except click.Abort:
        click.echo("penstock: stopped", err=True)
        code = EXIT_NO
    except errors.PenstockError as error:
        click.echo(f"penstock: {shown(str(error), keep_lines=True)}", err=True)
        code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_NO)
    sys.exit(code or 0)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("penstock: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _Shown(logging.Formatter):
    """What a record says was chosen by others, too: labels, addresses."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return shown(super().formatMessage(record))


def _show_usage_error(error: click.ClickException) -> None:
    """As click does; what was typed, or stands in a script's variable, does not act on the terminal."""
    said = io.StringIO()
    error.show(said)
    click.echo(shown(said.getvalue(), keep_lines=True), err=True, nl=False)


class Seconds(click.FloatRange):
    """A time in seconds. `nan` is a float within every range, and no time."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
