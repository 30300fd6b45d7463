"""Files that another tool's command exported, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError, Fault


def read(path: str, command: str) -> Any:
    """The value in a file that `command` wrote. Raises ConfigError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise ConfigError([Fault(f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise ConfigError([Fault(f"not the JSON that `{command}` writes: {error}")]) from None
    except RecursionError:
        raise ConfigError([Fault(f"not the JSON that `{command}` writes: nested too deeply")]) from None


def unlike(command: str, expected: str) -> ConfigError:
    """The error for JSON that is something else."""
    return ConfigError([Fault(f"not what `{command}` writes: {expected} expected")])


def _once(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice, and JSON would silently take the last")
        found[key] = value
    return found
