"""Python files below a path, parsed. What cannot be parsed is told with its line, and never ends the reading."""

from __future__ import annotations

import ast
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigError, Fault

from penstock_plugins.dagster.code_report import Finding

MAX_BYTES = 4_000_000
MAX_FILES = 50_000
COMPONENTS = frozenset({"defs.yaml", "defs.yml", "component.yaml"})
_NOT_THE_PROJECTS_OWN = frozenset({"__pycache__", "node_modules", "site-packages", "pyvenv.cfg"})


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file: its name for people, and its module's dotted name, from the root of the file system."""

    file: str
    dotted: str
    is_package: bool
    tree: ast.Module
    names_dagster: bool


def sources(path: Path) -> tuple[list[Source], list[Finding]]:
    """The parsed files of a file or folder, and what could not be parsed. Raises ConfigError if there is no Python."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise ConfigError([Fault(f"cannot be read: {_reason(error)}")]) from None
    found: list[Source] = []
    findings: list[Finding] = []
    count = 0
    for file in _files(path, findings) if is_folder else [path]:
        count += 1
        if count > MAX_FILES:
            raise ConfigError([Fault(f"more than {MAX_FILES} Python files; name the folder that has the definitions")])
        shown = str(file.relative_to(path)) if is_folder else file.name
        content = _content(file, shown, findings)
        tree = None if content is None else _parsed(content, shown, findings)
        if content is not None and tree is not None:
            found.append(Source(shown, _dotted(file), file.name == "__init__.py", tree, b"dagster" in content))
    if not count:
        raise ConfigError([Fault("no Python file below this folder; name the one that has Dagster's definitions")])
    return found, findings


def _files(root: Path, findings: list[Finding]) -> Iterator[Path]:
    """In the order of their names. Links are followed, but no folder is read twice, so a loop of links ends."""
    seen: set[tuple[int, int]] = set()

    def untold(error: OSError) -> None:
        where = os.path.relpath(error.filename, root)
        findings.append(Finding("unread", where, None, "a folder", f"it cannot be read: {_reason(error)}"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=untold):
        entry = os.stat(folder)
        if (entry.st_dev, entry.st_ino) in seen or "pyvenv.cfg" in files:
            folders.clear()
            continue
        seen.add((entry.st_dev, entry.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in _NOT_THE_PROJECTS_OWN)
        for name in sorted(files):
            if name.endswith(".py"):
                yield Path(folder, name)
            elif name in COMPONENTS:
                where = os.path.relpath(os.path.join(folder, name), root)
                reason = "it is YAML, which another program makes definitions of; look in it for `pool` and `op_tags`"
                findings.append(Finding("unread", where, None, "a component", reason))


def _content(file: Path, shown: str, findings: list[Finding]) -> bytes | None:
    try:
        entry = file.stat()
        if not stat.S_ISREG(entry.st_mode):
            reason = "it is no regular file"
        elif entry.st_size > MAX_BYTES:
            reason = f"it is larger than {MAX_BYTES // 1_000_000} MB, which nobody wrote by hand"
        else:
            return file.read_bytes()
    except OSError as error:
        reason = f"it cannot be read: {_reason(error)}"
    findings.append(Finding("unread", shown, None, "the whole file", reason))
    return None


def _parsed(content: bytes, shown: str, findings: list[Finding]) -> ast.Module | None:
    line = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of the project's escapes
            return ast.parse(content)
    except SyntaxError as error:
        line = error.lineno or None
        version = ".".join(map(str, sys.version_info[:2]))
        reason = (
            f"Python {version} cannot parse it: {error.msg}; mend it, or, "
            "if it is for a newer Python, run penstock under that one"
        )
    except ValueError as error:  # NUL bytes, up to Python 3.11
        reason = f"it cannot be parsed: {error}"
    except (RecursionError, MemoryError):
        reason = "it is nested too deeply to be parsed"
    findings.append(Finding("unread", shown, line, "the whole file", reason))
    return None


def _dotted(file: Path) -> str:
    absolute = Path(os.path.abspath(file))  # not resolved: a link's own name is what imports say
    parts = absolute.parent.parts if absolute.name == "__init__.py" else absolute.with_suffix("").parts
    return ".".join(parts[1:])


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
