"""From the text of a penstock.yaml, or a `concurrency:` block of dagster.yaml, to a configuration or all its faults."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from penstock.config import Concurrency, Ops, PerUniqueValue, PoolLimit, Pools, Runs, TagLimit
from penstock.errors import ConfigError, Fault

MAX_CHARACTERS = 1_000_000
MAX_NODES = 100_000

# Tags that hosts under Penstock never set: Dagster's own. A rule on one can never match.
DAGSTER_TAGS = "dagster/"
BLOCK_KEYS = frozenset(Concurrency.model_fields)

type_names = {"null": "nothing", "bool": "a boolean", "int": "a number", "float": "a number", "str": "text"}
Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """A configuration that is right, and what its author should know all the same."""

    concurrency: Concurrency
    warnings: tuple[Fault, ...] = ()


def read_file(path: str | Path) -> Read:
    """As `read`, from a file. Raises ConfigError also when the file cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([Fault(f"{path}: cannot be read: {error.strerror}")]) from None
    try:
        return read(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError([Fault("not UTF-8 text; save the file as UTF-8", line)]) from None


def read(text: str) -> Read:
    """The configuration in a YAML text. Raises ConfigError with every fault in it, each with its line."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError([Fault(f"{len(text)} characters; a configuration of more than {MAX_CHARACTERS} is refused")])
    root = _compose(text.removeprefix("\ufeff"))
    lines, faults = _Lines(), list[Fault]()
    if root is None:
        raise ConfigError([Fault("the file is empty; write a `concurrency:` block", 1)])
    try:
        document = lines.value(root, (), faults)
    except _TooLarge:
        raise ConfigError(
            [Fault(f"more than {MAX_NODES} values, aliases counted where they are used; refused")]
        ) from None
    if not isinstance(document, dict):
        raise ConfigError([*faults, Fault("a `concurrency:` block is expected at the top", 1)])
    if "concurrency" not in document:
        raise ConfigError([*faults, _no_block(document, lines)])
    for key in document:
        if key != "concurrency":
            faults.append(
                Fault(
                    "only a `concurrency:` block is read here, this key is not part of it; take it out",
                    lines.of((key,)),
                    str(key),
                )
            )
    block = document["concurrency"]
    warnings = _take_legacy_default(block, lines, faults) if isinstance(block, dict) else []
    try:
        concurrency = Concurrency.model_validate(block)
    except ValidationError as error:
        faults += _faults(error, lines)
        raise ConfigError(sorted(faults, key=_by_line)) from None
    if faults:
        raise ConfigError(sorted(faults, key=_by_line))
    return Read(concurrency, (*warnings, *_unmatched(concurrency, lines)))


class _TooLarge(Exception):
    """Aliases of aliases: a small text that stands for a huge one."""


class _Lines:
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
        self._lines.setdefault(location, line or 1)

    def value(self, node: yaml.Node, location: Location, faults: list[Fault]) -> Any:
        """The plain value; keys that stand twice become faults."""
        self._nodes += 1
        if self._nodes > MAX_NODES or len(location) > 100:
            raise _TooLarge
        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            values: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    faults.append(Fault("a key must be plain text", line, _path(location)))
                    continue
                # A name stays text whatever YAML would make of it (`on`, `1`); Dagster's names do, too.
                key = key_node.value
                if key in values:
                    first = self._lines[(*location, key)]
                    message = f"the key stands twice, first on line {first}; YAML would silently take the last"
                    faults.append(Fault(message, line, _path((*location, key))))
                    continue
                self._lines[(*location, key)] = line
                values[key] = self.value(value_node, (*location, key), faults)
            return values
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index), faults) for index, item in enumerate(node.value)]
        return yaml.constructor.SafeConstructor().construct_object(node)


def _compose(text: str) -> yaml.Node | None:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        # A scalar that YAML cannot make a value of (`2024-13-45`) shows only when it is constructed.
        yaml.safe_load_all(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        problem = error.problem or "cannot be read"
        if "\\t" in problem:
            problem = "a tab where YAML wants spaces; indent with spaces"
        raise ConfigError([Fault(f"not YAML: {problem}", line)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Fault(f"not YAML: {error}")]) from None
    except RecursionError:
        raise ConfigError([Fault("nested too deeply")]) from None
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1 if documents[1] is not None else None
        raise ConfigError([Fault("a second YAML document begins here; one file holds one configuration", line)])
    return documents[0] if documents else None


def _no_block(document: dict[str, Any], lines: _Lines) -> Fault:
    if BLOCK_KEYS & document.keys():
        found = ", ".join(sorted(BLOCK_KEYS & document.keys()))
        return Fault(f"the block lacks its first line `concurrency:`; put it above {found} and indent those", 1)
    nearest = difflib.get_close_matches("concurrency", [str(key) for key in document], n=1)
    if nearest:
        return Fault("no such key; did you mean `concurrency`?", lines.of((nearest[0],)), nearest[0])
    return Fault("no `concurrency:` block; only that is read here, not the rest of a dagster.yaml", 1)


def _take_legacy_default(block: dict[str, Any], lines: _Lines, faults: list[Fault]) -> list[Fault]:
    """`default_op_concurrency_limit` is Dagster's older word for `pools.default_limit`."""
    name = "default_op_concurrency_limit"
    if name not in block:
        return []
    value, line = block.pop(name), lines.of(("concurrency", name))
    pools = block["pools"] = {} if block.get("pools") is None else block["pools"]
    if not isinstance(pools, dict):
        return []
    if "default_limit" in pools and pools["default_limit"] != value:
        message = f"{value!r} contradicts pools.default_limit {pools['default_limit']!r}; keep the latter alone"
        faults.append(Fault(message, line, f"concurrency.{name}"))
        return []
    pools["default_limit"] = value
    lines.put(("concurrency", "pools", "default_limit"), line)
    return [Fault("deprecated: write pools.default_limit instead", line, f"concurrency.{name}")]


def _faults(error: ValidationError, lines: _Lines) -> list[Fault]:
    faults: list[Fault] = []
    for each in error.errors(include_url=False):
        # A tag rule's value is text or a block: pydantic tries both and reports both, people meant one.
        if each["loc"][-1:] == ("str",) and isinstance(each["input"], dict):
            continue
        if each["loc"][-1:] == ("PerUniqueValue",) and not isinstance(each["input"], dict):
            continue
        faults.append(_fault(dict(each), lines))
    return faults


def _fault(error: dict[str, Any], lines: _Lines) -> Fault:
    # The branch of that union, and pydantic's mark for a key, are no parts of the file.
    parts: list[str | int] = [part for part in error["loc"] if part not in ("str", "PerUniqueValue", "[key]")]
    location: Location = ("concurrency", *parts)
    found = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            known = _known_keys(location[:-1])
            nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"known are: {', '.join(known)}"
            message = f"no such key; {hint}"
        case "missing":
            message = "is missing"
        case "value_error":
            message = str(error["ctx"]["error"])
        case _:
            message = f"{_shown(found)} found; {_expected(error)}"
    return Fault(message, lines.of(location), _path(location))


def _expected(error: dict[str, Any]) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"at least {context['ge']} is expected"
        case "less_than_equal":
            return f"at most {context['le']} is expected"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number is expected"
        case "string_type":
            rule_value = "str" in error["loc"]
            return "text, or {applyLimitPerUniqueValue: true}, is expected" if rule_value else "text is expected"
        case "bool_type":
            return "true is expected"
        case "enum":
            return f"{context['expected']} is expected"
        case "model_type" | "dict_type" | "model_attributes_type":
            return "a block of keys is expected"
        case "tuple_type" | "list_type":
            return "a list is expected"
        case "string_too_short":
            return "text that is not empty is expected"
        case _:
            return str(error["msg"])


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _known_keys(location: Location) -> list[str]:
    """The keys that the block at this place may have."""
    parts = location[1:]
    model: type[BaseModel] = Concurrency
    for part in parts:
        if part in ("pools", "runs", "ops") and model is Concurrency:
            blocks: dict[str, type[BaseModel]] = {"pools": Pools, "runs": Runs, "ops": Ops}
            model = blocks[str(part)]
        elif part == "tag_concurrency_limits":
            model = TagLimit
        elif part == "limits":
            model = PoolLimit
        elif part == "value" and model is TagLimit:
            model = PerUniqueValue
    return sorted(model.model_fields)


def _unmatched(concurrency: Concurrency, lines: _Lines) -> list[Fault]:
    warnings = []
    for block, rules in (
        ("runs", concurrency.runs.tag_concurrency_limits),
        ("ops", concurrency.ops.tag_concurrency_limits),
    ):
        for index, rule in enumerate(rules):
            if rule.key.startswith(DAGSTER_TAGS):
                location: Location = ("concurrency", block, "tag_concurrency_limits", index, "key")
                message = f"{rule.key!r}: no host sets this tag by itself, so the rule matches only those that you tag"
                warnings.append(Fault(message, lines.of(location), _path(location)))
    return warnings


def _path(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _by_line(fault: Fault) -> tuple[int, str]:
    return (fault.line or 0, fault.path)
