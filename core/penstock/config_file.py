"""From the text of a penstock.yaml, or a `concurrency:` block of dagster.yaml, to a configuration or all its faults."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from penstock.claim import brief
from penstock.config import Concurrency, Ops, PerUniqueValue, PoolLimit, Pools, Runs, TagLimit, rule_value
from penstock.errors import ConfigError, Fault
from penstock.host_tags import unmatched_rules
from penstock.yaml_lines import MAX_DEPTH, MAX_NODES, Lines, Location, TooLarge, compose, path_of

MAX_CHARACTERS = 1_000_000
MAX_BYTES = 4 * MAX_CHARACTERS  # of UTF-8
TOO_LONG = f"a configuration of more than {MAX_CHARACTERS} characters is refused"

BLOCK_KEYS = frozenset(Concurrency.model_fields)
# The top of a dagster.yaml, as far as it is Dagster's alone.
DAGSTER_KEYS = frozenset(
    {"run_queue", "run_coordinator", "run_launcher", "run_monitoring", "run_retries", "run_storage", "compute_logs"}
    | {"event_log_storage", "schedule_storage", "local_artifact_storage", "instance_class", "storage"}
)
WHOLE_DAGSTER = "`penstock migrate dagster` takes over a whole dagster.yaml"


@dataclass(frozen=True, slots=True)
class Read:
    """A configuration that is right, and what its author should know all the same."""

    concurrency: Concurrency
    warnings: tuple[Fault, ...] = ()


def read_file(path: str | Path) -> Read:
    """As `read`, from a file. Raises ConfigError also when the file cannot be read."""
    return read(read_text(path))


def read_text(path: str | Path) -> str:
    """The text of a file. Raises ConfigError when it cannot be read, is too large, or no UTF-8."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Fault(f"cannot be read: {error.strerror}")]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([Fault(f"more than {MAX_BYTES} bytes; {TOO_LONG}")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError([Fault("not UTF-8 text; save the file as UTF-8", line)]) from None


def read_document(text: str) -> tuple[dict[str, Any] | None, Lines, list[Fault]]:
    """The keys and values of a YAML text, the line of each, and what is wrong with single ones; None: it is empty.

    Raises ConfigError when it is no YAML, too large, or something else than a block of keys.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError([Fault(f"{len(text)} characters; {TOO_LONG}")])
    root = compose(text.removeprefix("\ufeff"))
    lines, faults = Lines(), list[Fault]()
    try:
        document = None if root is None else lines.value(root, (), faults)
    except TooLarge:
        raise ConfigError(
            [Fault(f"more than {MAX_NODES} values or {MAX_DEPTH} levels, aliases counted where they are used; refused")]
        ) from None
    if document is not None and not isinstance(document, dict):
        raise ConfigError([*faults, Fault("a block of keys, such as `concurrency:`, is expected at the top", 1)])
    return document, lines, faults


def read(text: str) -> Read:
    """The configuration in a YAML text. Raises ConfigError with every fault in it, each with its line."""
    document, lines, faults = read_document(text)
    if document is None:
        raise ConfigError([*faults, Fault("the file is empty; write a `concurrency:` block", 1)])
    if "concurrency" not in document:
        raise ConfigError([*faults, _no_block(document, lines)])
    for key in document:
        if key != "concurrency":
            remedy = WHOLE_DAGSTER if key in DAGSTER_KEYS else "take it out"
            message = f"only a `concurrency:` block is read here, this key is not part of it; {remedy}"
            faults.append(Fault(message, lines.of((key,)), str(key)))
    block = document["concurrency"]
    warnings = _take_legacy_default(block, lines, faults) if isinstance(block, dict) else []
    faults += _rules_twice(block, lines)
    try:
        concurrency = Concurrency.model_validate(block)
    except ValidationError as error:
        named = {(fault.line, fault.path) for fault in faults}
        faults += [fault for fault in _faults(error, lines) if (fault.line, fault.path) not in named]
        raise ConfigError(sorted(faults, key=_by_line)) from None
    if faults:
        raise ConfigError(sorted(faults, key=_by_line))
    return Read(concurrency, (*warnings, *_unmatched(concurrency, lines)))


def _no_block(document: dict[str, Any], lines: Lines) -> Fault:
    if BLOCK_KEYS & document.keys():
        found = ", ".join(sorted(BLOCK_KEYS & document.keys()))
        return Fault(f"the block lacks its first line `concurrency:`; put it above {found} and indent those", 1)
    nearest = difflib.get_close_matches("concurrency", [str(key) for key in document], n=1)
    if nearest:
        return Fault("no such key; did you mean `concurrency`?", lines.of((nearest[0],)), nearest[0])
    message = "no `concurrency:` block; only that is read here, not the rest of a dagster.yaml"
    return Fault(f"{message}; {WHOLE_DAGSTER}" if DAGSTER_KEYS & document.keys() else message, 1)


def _take_legacy_default(block: dict[str, Any], lines: Lines, faults: list[Fault]) -> list[Fault]:
    """`default_op_concurrency_limit` is Dagster's older word for `pools.default_limit`."""
    name = "default_op_concurrency_limit"
    if name not in block:
        return []
    value, line = block.pop(name), lines.of(("concurrency", name))
    pools = block["pools"] = {} if block.get("pools") is None else block["pools"]
    if value is not None and isinstance(pools, dict):
        if pools.get("default_limit", value) not in (None, value):
            message = f"{value!r} contradicts pools.default_limit {pools['default_limit']!r}; keep the latter alone"
            faults.append(Fault(message, line, f"concurrency.{name}"))
            return []
        pools["default_limit"] = value
        lines.put(("concurrency", "pools", "default_limit"), line)
    return [Fault("deprecated: write pools.default_limit instead", line, f"concurrency.{name}")]


def _rules_twice(block: Any, lines: Lines) -> list[Fault]:
    """Every rule for a tag that has one already, at its own line; the model would name only the first of them."""
    faults = []
    for name in ("runs", "ops"):
        part = block.get(name) if isinstance(block, dict) else None
        rules = part.get("tag_concurrency_limits") if isinstance(part, dict) else None
        first: dict[tuple[str, str], int | None] = {}
        for index, rule in enumerate(rules if isinstance(rules, list) else []):
            if not isinstance(rule, dict) or not isinstance(rule.get("key"), str):
                continue
            location: Location = ("concurrency", name, "tag_concurrency_limits", index)
            tag, line = (rule["key"], repr(rule_value(rule.get("value")))), lines.of(location)
            if tag in first:
                message = f"two rules for the same tag {tag[0]!r}, the first on line {first[tag]}; keep the one meant"
                faults.append(Fault(message, line, path_of(location)))
            first.setdefault(tag, line)
    return faults


def _faults(error: ValidationError, lines: Lines) -> list[Fault]:
    faults: list[Fault] = []
    for each in error.errors(include_url=False):
        # A tag rule's value is text or a block: pydantic tries both and reports both, people meant one.
        loc = each["loc"]
        if _is_rule_value(loc) and len(loc) == 5 and (loc[4] == "str") == isinstance(each["input"], dict):
            continue
        # Named by `_rules_twice`, each at its own line.
        if each["type"] == "value_error" and loc[1:] == ("tag_concurrency_limits",):
            continue
        faults.append(_fault(dict(each), lines))
    return faults


def _is_rule_value(loc: Location) -> bool:
    """Whether the place lies in one branch of the union that a tag rule's `value` is."""
    return len(loc) > 4 and loc[1] == "tag_concurrency_limits" and loc[3] == "value"


def _fault(error: dict[str, Any], lines: Lines) -> Fault:
    loc: Location = error["loc"]
    # The branch of that union, and pydantic's mark for a key, are no parts of the file.
    if _is_rule_value(loc):
        loc = (*loc[:4], *loc[5:])
    elif loc[:2] == ("pools", "limits") and loc[3:] == ("[key]",) and error["type"] != "extra_forbidden":
        loc = loc[:3]
    location: Location = ("concurrency", *loc)
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
            message = f"{shown(found)} found; {expected(error)}"
    return Fault(message, lines.of(location), path_of(location))


def expected(error: dict[str, Any]) -> str:
    """What pydantic wanted, in words."""
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"at least {context['ge']} is expected"
        case "less_than_equal":
            return f"at most {context['le']} is expected"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number is expected"
        case "string_type":
            rule_value = _is_rule_value(error["loc"])
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


def shown(value: object) -> str:
    """What was found, cut short."""
    return "nothing" if value is None else brief(value)


def _known_keys(location: Location) -> list[str]:
    """The keys that the block at this place may have."""
    blocks: dict[Location, type[BaseModel]] = {
        (): Concurrency,
        ("pools",): Pools,
        ("runs",): Runs,
        ("ops",): Ops,
    }
    model = blocks.get(location[1:])
    if model is None:
        model = PoolLimit if location[1] == "pools" else PerUniqueValue if len(location) > 4 else TagLimit
    return sorted(model.model_fields)


def _unmatched(concurrency: Concurrency, lines: Lines) -> list[Fault]:
    warnings = []
    for block, index, key, why in unmatched_rules(concurrency):
        location: Location = ("concurrency", block, "tag_concurrency_limits", index, "key")
        warnings.append(Fault(f"{key!r}: {why}", lines.of(location), path_of(location)))
    return warnings


def _by_line(fault: Fault) -> tuple[int, str]:
    return (fault.line or 0, fault.path)
