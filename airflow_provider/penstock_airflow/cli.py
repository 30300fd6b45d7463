"""`airflow penstock …`: the commands of `penstock` on this installation's store. Every `airflow` command loads this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

STORELESS = frozenset({"check", "completion", "demo", "migrate"})
"""The commands that work on no store."""


def get_cli_commands() -> list[Any]:
    """The commands that Airflow adds to its own, from 3.2 on."""
    import argparse  # noqa: PLC0415

    from airflow.cli.cli_config import ActionCommand, Arg, lazy_load_command  # noqa: PLC0415

    return [
        ActionCommand(
            name="penstock",
            help="Concurrency limits: status, explain, doctor, and all else that `penstock` does",
            description=(
                "Run a command of `penstock` with the store and the deployment of this installation. "
                "`airflow penstock` alone lists them; `airflow penstock COMMAND --help` says what each takes."
            ),
            func=lazy_load_command("penstock_airflow.cli.run"),
            args=(
                Arg(
                    flags=("--store",),
                    metavar="URL",
                    help="Another store than this installation's; before the command",
                ),
                Arg(
                    flags=("command",),
                    help="A command of `penstock` with its arguments, such as: status, explain ID, doctor",
                    nargs=argparse.REMAINDER,
                ),
            ),
        )
    ]


def run(arguments: Any) -> None:
    """Run `penstock` and end with its exit code."""
    import logging  # noqa: PLC0415
    import os  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from penstock.cli import EXIT_CODES, EXIT_NO, main  # noqa: PLC0415
    from penstock.errors import PenstockError  # noqa: PLC0415
    from penstock.text import shown  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.WARNING)  # Airflow's logging would tell each step of an upgrade
    words, store, store_from = list(arguments.command), arguments.store, None
    command = _command_on_a_store(words)
    if command is not None:
        try:
            if store is None:
                store, store_from = _own_store(needed=command != "doctor"), "[penstock] of Airflow"
            os.environ["PENSTOCK_DEPLOYMENT"] = _own_name(needed=command != "doctor")
        except PenstockError as error:
            sys.stderr.write(f"penstock: {shown(str(error), keep_lines=True)}\n")
            sys.exit(next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_NO))
    main(words, prog_name="airflow penstock", store=store, store_from=store_from)


def _command_on_a_store(words: Sequence[str]) -> str | None:
    """The command that is to run on a store; None where these words need none: they ask for help, or are wrong.

    Read as `penstock` itself reads them: a `--help` may as well belong to what `run` is to run.
    """
    import click  # noqa: PLC0415
    from penstock.cli import penstock  # noqa: PLC0415

    command: click.Command | None = penstock
    context: click.Context | None = None
    rest, names = list(words), list[str]()
    while command is not None:
        context = click.Context(command, parent=context, resilient_parsing=True, **command.context_settings)
        asked, rest, _ = command.make_parser(context).parse_args(rest)
        if any(option.is_eager and asked.get(str(option.name)) for option in command.get_params(context)):
            return None  # help, or the version
        if not isinstance(command, click.Group) or (not rest and command.invoke_without_command):
            return None if names[0] in STORELESS else names[0]
        names += rest[:1]
        command = command.get_command(context, rest.pop(0)) if rest else None
    return None


def _own_store(*, needed: bool) -> str:
    """The URL of this installation's store, "" without one. Raises ConfigError, StoreUnavailable where it is needed."""
    from penstock.errors import PenstockError  # noqa: PLC0415

    from penstock_airflow.installation import Installation, store_url  # noqa: PLC0415

    try:
        return store_url(Installation.configured())
    except PenstockError:
        if needed:
            raise
        return ""


def _own_name(*, needed: bool) -> str:
    """What this installation is called. Raises ConfigError where its settings cannot be read and it is needed."""
    from penstock.errors import ConfigError  # noqa: PLC0415

    from penstock_airflow.installation import deployment  # noqa: PLC0415

    try:
        return deployment()
    except ConfigError:
        if needed:
            raise
        return "airflow"
