"""`airflow penstock …`: the commands of `penstock` on this installation's store. Every `airflow` command loads this."""

from __future__ import annotations

from typing import Any

STORELESS = frozenset({"check", "completion", "demo", "--help", "-h", "--version"})
"""What works on no store."""


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

    from penstock.cli import main  # noqa: PLC0415
    from penstock.errors import PenstockError  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.WARNING)  # Airflow's logging would tell each step of an upgrade
    words = list(arguments.command)
    store = None
    if words and words[0] not in STORELESS:
        try:
            store, deployment = _here(needed=words[0] != "doctor")
        except PenstockError as error:
            sys.stderr.write(f"penstock: {error}\n")
            sys.exit(1)
        os.environ["PENSTOCK_DEPLOYMENT"] = deployment
    main(words, prog_name="airflow penstock", store=store, store_from="[penstock] of Airflow")


def _here(*, needed: bool) -> tuple[str, str]:
    """The store's URL ("": none) and the deployment. Raises ConfigError, also where one is needed and there is none."""
    from penstock.errors import PenstockError  # noqa: PLC0415

    from penstock_airflow.installation import Installation, store_url  # noqa: PLC0415

    try:
        here = Installation.configured()
        return store_url(here), here.deployment
    except PenstockError:
        if needed:
            raise
        return "", "airflow"
