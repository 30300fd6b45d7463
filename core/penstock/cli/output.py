"""Writing a file for the user: asked before another is replaced, and whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import click

from penstock.cli.asking import declined
from penstock.text import shown


def refused(output: str, *, yes: bool) -> int | None:
    """None when the file may be written: there is none, or it may be replaced; else the exit code."""
    if not os.path.lexists(output):
        return None
    return declined(f"{shown(output)} is there already. Replace it?", yes=yes)


def write_whole(output: str, text: str) -> None:
    """Write a file beside it and give that its name: who reads sees the old one or the new one, never a part.

    Raises click.FileError.
    """
    target = Path(output).resolve()  # of a link the file that it leads to
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        try:
            with beside.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
    except OSError as error:
        raise click.FileError(output, error.strerror) from None
