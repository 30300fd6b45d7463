"""A configuration as the text of a penstock.yaml, with comments that say where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from penstock.config import Concurrency

INDENT = "  "
RULE = ("key", "value", "limit")


def written(concurrency: Concurrency, origins: Mapping[str, str], head: Sequence[str] = ()) -> str:
    """The YAML text. `origins`: place in it (`runs.tag_concurrency_limits[0]`) → comment; `head`: lines on top.

    What is at its default is left out unless `origins` names it. `config_file.read` gives the same configuration back.
    """
    lines = [f"# {line}".rstrip() for text in head for line in _lines(text)]
    lines.append("concurrency:")
    block = concurrency.model_dump(mode="json", exclude_none=True)
    body = [line for key, value in block.items() for line in _entry(key, value, key, 1, origins)]
    return "\n".join([*lines, *(body or [INDENT + "{}"])]) + "\n"


def _entry(key: str, value: Any, place: str, depth: int, origins: Mapping[str, str]) -> Iterator[str]:
    """The lines of one key; none when it says no more than its absence would."""
    indent = INDENT * depth
    if isinstance(value, dict):
        if _is_pool(place):
            yield from _commented(f"{indent}{scalar(key)}: {_flow(value)}", place, origins)
            return
        below = [
            line for name, part in value.items() for line in _entry(name, part, f"{place}.{name}", depth + 1, origins)
        ]
        if below:
            yield from (f"{indent}{scalar(key)}:", *below)
    elif isinstance(value, list):
        if value:
            yield f"{indent}{scalar(key)}:"
        for index, rule in enumerate(value):
            yield from _commented(
                f"{indent}{INDENT}- {_flow({name: rule[name] for name in RULE if name in rule})}",
                f"{place}[{index}]",
                origins,
            )
    elif place in origins or value != _default(place):
        yield from _commented(f"{indent}{key}: {scalar(value)}", place, origins)


def _default(place: str) -> Any:
    part: Any = Concurrency()
    for name in place.split("."):
        part = getattr(part, name)
    return part


def _is_pool(place: str) -> bool:
    return place.startswith("pools.limits.")


def _commented(line: str, place: str, origins: Mapping[str, str]) -> Iterator[str]:
    """The line, its comment above it."""
    indent = line[: len(line) - len(line.lstrip())]
    yield from (f"{indent}# {text}" for text in _lines(origins.get(place, "")))
    yield line


def _lines(text: str) -> list[str]:
    """The text's lines. YAML ends one also where Python does, and a comment must not become a key."""
    return ["".join(c if c.isprintable() else "?" for c in line) for line in text.splitlines()]


def _flow(value: Mapping[str, Any]) -> str:
    if value.keys() == {"limit"}:
        return scalar(value["limit"])
    parts = (f"{key}: {_flow(part) if isinstance(part, dict) else scalar(part)}" for key, part in value.items())
    return "{" + ", ".join(parts) + "}"


def scalar(value: Any) -> str:
    """One value as YAML, in one line; text in quotes where it would be read as something else."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None  # else a line break stays one
    text = yaml.safe_dump([value], default_flow_style=True, default_style=style, allow_unicode=True, width=float("inf"))
    return text.strip().removeprefix("[").removesuffix("]")
