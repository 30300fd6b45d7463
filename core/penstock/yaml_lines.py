"""YAML read so that every value knows its line, and keys that stand twice are seen."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from penstock.errors import ConfigError, Fault

MAX_NODES = 100_000
MAX_DEPTH = 100
MAX_NUMBER_CHARACTERS = 100
TEXT = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"})
"""What stays text. A date is the value of a tag, as in Dagster: nothing in a configuration is a time."""
Location = tuple[str | int, ...]


class TooLarge(Exception):
    """Aliases of aliases: a small text that stands for a huge one."""


class Lines:
    """Turns YAML nodes into plain values and remembers on which line each stands."""

    def __init__(self) -> None:
        self._lines: dict[Location, int] = {}
        self._nodes = 0

    def of(self, location: Location) -> int | None:
        """The line of a value, else of what is nearest above it."""
        while location and location not in self._lines:
            location = location[:-1]
        return self._lines.get(location)

    def put(self, location: Location, line: int | None) -> None:
        """Say where a value stands that was moved from another place."""
        self._lines[location] = line or 1

    def value(self, node: yaml.Node, location: Location, faults: list[Fault]) -> Any:
        """The plain value; keys that stand twice and scalars that YAML makes nothing of become faults."""
        self._nodes += 1
        if self._nodes > MAX_NODES or len(location) > MAX_DEPTH:
            raise TooLarge
        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location, faults)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index), faults) for index, item in enumerate(node.value)]
        return _scalar(node, location, faults)

    def _mapping(self, node: yaml.MappingNode, location: Location, faults: list[Fault]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                faults.append(Fault("a key must be plain text", line, path_of(location)))
                continue
            if key_node.tag == "tag:yaml.org,2002:merge":
                faults.append(Fault("merge keys (`<<`) are not read; write the keys out", line, path_of(location)))
                continue
            # A name stays text whatever YAML would make of it (`on`, `1`); Dagster's names do, too.
            key = key_node.value
            if key in values:
                first = self._lines[(*location, key)]
                message = f"the key stands twice, first on line {first}; YAML would silently take the last"
                faults.append(Fault(message, line, path_of((*location, key))))
                continue
            self._lines[(*location, key)] = line
            values[key] = self.value(value_node, (*location, key), faults)
        return values


def _scalar(node: yaml.Node, location: Location, faults: list[Fault]) -> Any:
    if node.tag not in TEXT:
        try:
            # Python neither reads nor prints integers of thousands of digits.
            if len(node.value) > MAX_NUMBER_CHARACTERS:
                raise ValueError("too long")
            return SafeConstructor().construct_object(node)
        # What PyYAML lets through for `2024-13-45`, `!!int x`, `!!bool maybe`, `!!timestamp x`, `=` and unknown tags.
        except (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            shown = node.value if len(node.value) <= 40 else node.value[:40] + "…"
            message = f"{shown!r} found, which is no {kind} that can be read; put it in quotes if it is text"
            faults.append(Fault(message, node.start_mark.line + 1, path_of(location)))
    return node.value


def compose(text: str) -> yaml.Node | None:
    """The one document of a text, None when there is nothing in it. Raises ConfigError on what is not YAML."""
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        problem = error.problem or "cannot be read"
        if "\\t" in problem:
            problem = "a tab where YAML wants spaces; indent with spaces"
        raise ConfigError([Fault(f"not YAML: {problem}", line)]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = text[error.position : error.position + 1]
        raise ConfigError([Fault(f"not YAML: the character {found!r} is not allowed; take it out", line)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Fault(f"not YAML: {error}")]) from None
    except RecursionError:
        raise ConfigError([Fault("nested too deeply")]) from None
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1 if documents[1] is not None else None
        raise ConfigError([Fault("a second YAML document begins here; one file holds one configuration", line)])
    return documents[0] if documents else None


def path_of(location: Location) -> str:
    """A place as people write it: `concurrency.runs.tag_concurrency_limits[0].key`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
