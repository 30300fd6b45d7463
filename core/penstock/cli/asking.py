"""Asking before something is changed."""

from __future__ import annotations

import sys

import click

from penstock.cli import EXIT_USAGE


def declined(question: str, *, yes: bool) -> int | None:
    """None when it may be done; else the exit code, and it was said that nothing was changed.

    `--yes` stands for the answer. Without it and without a terminal there is nobody to ask: bad usage.
    """
    if yes:
        return None
    if not sys.stdin.isatty():
        click.echo("penstock: nothing was changed; add --yes where there is no terminal", err=True)
        return EXIT_USAGE
    if click.confirm(question):
        return None
    click.echo("nothing was changed")
    return 0
