"""What a run or an op asks for. Pure values: nothing here talks to a store."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

from penstock.errors import ClaimError
from penstock.text import shown

NAME_MAX_CHARACTERS = 255
TEXT_MAX_BYTES = 16_000  # as UTF-8: four of them, a label, fit into what MariaDB calls TEXT
TAGS_MAX_CHARACTERS = 1_000_000
CAPACITY_MAX = 10_000
PRIORITY_MAX = 2**31 - 1  # what every database's INTEGER holds
_UNUSABLE_IN_NAME = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SLOTS_SUFFIX = re.compile(r"(?P<name>.+):(?P<slots>\d+)", re.DOTALL)
_SLOTS_DIGITS = 20
_RESERVED_IN_PART = re.compile(r"[%:=/*]")

PoolsLike = str | Mapping[str, int]


class ClaimKind(StrEnum):
    """A run claim is made once for a whole execution, an op claim for each step of it.

    RUN_POOL is a pool of run granularity that the run takes late, at the first op that names it; it is the run's.
    """

    RUN = "run"
    OP = "op"
    RUN_POOL = "run_pool"


class Liveness(StrEnum):
    """What keeps a claim alive: a process that beats, a deadline moved at each touch, the host's word, its run."""

    SESSION = "session"
    TICKET = "ticket"
    PROBE = "probe"
    PARENT = "parent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One request for slots.

    `pools` maps names to slots (at least 1). `tags` are run tags on a run claim and op tags on an op claim.
    `priority` is any integer; each step is worth 60 s of waiting, up to an hour. `in_run` says that the op belongs to a
    run under limits. A claim with the same `holder` as a live one is the same claim: it shares the lease.

    `parent_id` is the claim id of the lease under which this one is made: an op's run, or the op around a nested block.
    `within` on a run claim are the run's own limits on its ops, in the form of the configuration's `ops` block; what it
    gives replaces what is configured. `roots` on a run claim are the pools of each op with which the run begins, where
    its host knows them: it does not start while all of these are full. `name` is what people read instead of the ids;
    `step` names an op over all runs, such as `etl.load`.
    """

    kind: ClaimKind
    host: str
    deployment: str
    run_id: str | None = None
    op_id: str | None = None
    attempt: int = 1
    pools: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    url: str | None = None
    in_run: bool = False
    parent_id: str | None = None
    within: Mapping[str, Any] | None = None
    roots: tuple[tuple[str, ...], ...] = ()
    name: str | None = None
    step: str | None = None
    claim_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ClaimKind(self.kind))
        if self.kind is not ClaimKind.OP and not self.run_id:
            raise ClaimError("a run claim needs a run id")
        for name in _TEXTS:
            if (text := getattr(self, name)) is not None:
                check_text(text, name)
        if abs(self.priority) > PRIORITY_MAX:
            raise ClaimError(
                f"priority {self.priority}: at most {PRIORITY_MAX} either way; 60 steps are an hour already"
            )
        if not 0 <= self.attempt <= PRIORITY_MAX:
            raise ClaimError(f"attempt {self.attempt}: from 0 to {PRIORITY_MAX} is expected")
        for name, slots in self.pools.items():
            check_pool_name(name)
            if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
                raise ClaimError(f"pool {name!r}: {brief(slots)} slots asked; ask for a whole number of at least 1")
            if slots > CAPACITY_MAX:
                raise ClaimError(f"pool {name!r}: {brief(slots)} slots asked; no limit has more than {CAPACITY_MAX}")
        _check_tags(self.tags)
        object.__setattr__(self, "pools", MappingProxyType(dict(self.pools)))
        object.__setattr__(self, "tags", MappingProxyType(dict(self.tags)))
        object.__setattr__(self, "roots", tuple(map(tuple, self.roots)))

    @property
    def holder(self) -> str | None:
        """The one who may hold this lease only once; None for a claim that nobody else can name."""
        owner = [self.host, self.deployment, self.run_id or ""]
        if self.kind is ClaimKind.RUN:
            return "run:" + "/".join(map(encode_part, owner))
        if self.kind is ClaimKind.RUN_POOL:
            return "run_pool:" + "/".join(map(encode_part, [*owner, *self.pools]))
        if self.op_id is None:
            return None
        return "op:" + "/".join(map(encode_part, [*owner, self.op_id, str(self.attempt)]))

    @property
    def label(self) -> str:
        """A short name for people, such as `airflow/prod etl/manual__1 load[3]`."""
        names = (self.name,) if self.name else (self.run_id, self.op_id)
        return " ".join(part for part in (f"{self.host}/{self.deployment}", *names) if part)

    def __str__(self) -> str:
        """The label, safe in a line of a log and on a terminal, whatever the names in it are."""
        return shown(self.label)

    def as_dict(self) -> dict[str, Any]:
        """The claim as plain JSON values, for a host that carries it from one process to another."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        within = dict(self.within) if self.within is not None else None
        return values | {
            "kind": self.kind.value,
            "pools": dict(self.pools),
            "tags": dict(self.tags),
            "within": within,
            "roots": [list(pools) for pools in self.roots],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `as_dict`, claim id included."""
        return cls(**{**values, "kind": ClaimKind(values["kind"])})


_TEXTS = ("host", "deployment", "run_id", "op_id", "url", "name", "step", "parent_id", "claim_id")


def brief(value: object) -> str:
    """A value in an error: as Python writes it, cut short."""
    # Python does not write integers of thousands of digits.
    text = f"{value:.3g}" if isinstance(value, int) and abs(value) > 10**30 else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def check_text(text: str, what: str) -> str:
    """The text itself, or ClaimError for what a database would refuse or change: `what` is called so in the error."""
    if "\x00" in text:
        raise ClaimError(f"{what} {brief(text)}: a NUL character cannot be stored; leave it out")
    if not text.isascii() and (half := _SURROGATE.search(text)):
        raise ClaimError(
            f"{what} {brief(text)}: {half[0]!r} is half a character, which cannot be stored; was it text that is not "
            "UTF-8?"
        )
    if (size := len(text) if text.isascii() else len(text.encode())) > TEXT_MAX_BYTES:
        raise ClaimError(f"{what} {brief(text)}: {size} bytes; at most {TEXT_MAX_BYTES} are allowed")
    return text


def _check_tags(tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ClaimError(f"tag {brief(key)}: {brief(value)}: keys and values of tags are text")
        check_text(key, "tag")
        check_text(value, f"tag {brief(key)}: value")
    if (size := sum(len(key) + len(value) for key, value in tags.items())) > TAGS_MAX_CHARACTERS:
        raise ClaimError(f"{len(tags)} tags of {size} characters; at most {TAGS_MAX_CHARACTERS} are allowed in all")


def run_pool_claim(op: Claim, run_claim_id: str, pool: str, slots: int) -> Claim:
    """The claim by which a run takes a pool late, on behalf of the op that names it."""
    return Claim(
        kind=ClaimKind.RUN_POOL,
        host=op.host,
        deployment=op.deployment,
        run_id=op.run_id,
        pools={pool: slots},
        priority=op.priority,
        url=op.url,
        parent_id=run_claim_id,
    )


def encode_part(text: str) -> str:
    """Percent-encode what would break a key into the wrong parts: `% : = / *`."""
    return _RESERVED_IN_PART.sub(lambda match: f"%{ord(match[0]):02X}", text)


def check_pool_name(name: object) -> str:
    """The name itself, or ClaimError. A name is text of 1 to 255 characters, no whitespace, not ending in `:digits`."""
    if not isinstance(name, str) or not name:
        raise ClaimError(f"pool name {name!r}: a name is text of at least one character")
    if len(name) > NAME_MAX_CHARACTERS:
        raise ClaimError(f"pool name {name[:40]!r}…: {len(name)} characters; at most {NAME_MAX_CHARACTERS} are allowed")
    check_text(name, "pool name")
    if _UNUSABLE_IN_NAME.search(name):
        raise ClaimError(f"pool name {name!r}: whitespace and control characters are not allowed")
    if _SLOTS_SUFFIX.fullmatch(name):
        raise ClaimError(f"pool name {name!r}: a name cannot end in `:digits`, that is how slots are written")
    return name


def can_name_pool(name: object) -> bool:
    """Whether a pool can have that name: what `check_pool_name` takes."""
    try:
        check_pool_name(name)
    except ClaimError:
        return False
    return True


def parse_pool(text: str) -> tuple[str, int]:
    """`NAME` or `NAME:SLOTS` (last colon, digits) as (name, slots)."""
    match = _SLOTS_SUFFIX.fullmatch(text)
    if match and len(match["slots"]) > _SLOTS_DIGITS:
        raise ClaimError(f"pool {brief(text)}: no limit has more than {CAPACITY_MAX} slots")
    name, slots = (match["name"], int(match["slots"])) if match else (text, 1)
    if slots < 1:
        raise ClaimError(f"pool {text!r}: ask for at least 1 slot")
    return check_pool_name(name), slots


def parse_pools(pools: Iterable[PoolsLike]) -> dict[str, int]:
    """Pools as written by users, strings and mappings mixed, as one mapping. A pool named twice is an error."""
    parsed: dict[str, int] = {}
    for item in pools:
        for name, slots in item.items() if isinstance(item, Mapping) else [parse_pool(item)]:
            if name in parsed:
                raise ClaimError(f"pool {name!r} is named twice; name it once, with the slots it needs in all")
            parsed[name] = slots
    return parsed


def parse_tag(text: str) -> tuple[str, str]:
    """A tag given as one string, `key:value` or a plain `key` (value ""), as (key, value)."""
    key, _, value = text.partition(":")
    return key, value
