"""Older versions of Penstock, from this repository's own history, as programs beside the one that is tested."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from servers import missing

ROOT = Path(__file__).parents[1]
FIRST = "51831ade6a"
"""The last one with the first schema, 0001."""
PREVIOUS = "4a89c46"
"""The last one with schema 0002."""


@cache
def tree(commit: str) -> Path:
    """The packages of that commit, in a folder."""
    done = _git("archive", commit, "core", "plugins")
    if done.returncode != 0:
        why = f"no commit {commit} here: this needs a clone with its whole history"
        if _git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true":
            pytest.skip(why)  # .ci/run asks for the rest; where that is not to be had there is nothing to install
        missing(why)
    folder = Path(mkdtemp(prefix=f"penstock-{commit}-"))
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # Who made the clone may be somebody else than who runs the tests.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def start(commit: str | None, *arguments: str, url: str = "") -> subprocess.Popen[str]:
    """Run `tests/versions_client.py` with that version; None is the one that is tested."""
    folder = ROOT if commit is None else tree(commit)
    path = os.pathsep.join(str(folder / name) for name in ("core", "plugins"))
    return subprocess.Popen(
        [sys.executable, "-P", str(ROOT / "tests/versions_client.py"), *arguments],
        env=os.environ | {"PYTHONPATH": path, "PENSTOCK_STORE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(commit: str | None, *arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
    """As `start`, until it ends."""
    process = start(commit, *arguments, url=url)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
