"""What one `limited(…)`, or the conf of a run, says: its words, checked as far as they are no templates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, get_args

from penstock.claim import PoolsLike, check_pool_name, parse_pools
from penstock.errors import ClaimError
from penstock.settings import OnBlocked

CONF_KEY = "penstock"
_TEMPLATE_SIGNS = ("{{", "{%", "{#")
_CONF_WORDS = (
    "pools",
    "tags",
    "priority",
    "on_blocked",
    "wait_timeout_seconds",
    "max_concurrent",
    "tag_concurrency_limits",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The words of one `limited(…)`, templates as written; None: not said. Raises ClaimError on what is never right.

    Of `pools` each item is `"name"`, `"name:slots"` or a mapping name → slots.
    """

    pools: tuple[PoolsLike, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int | str | None = None
    on_blocked: OnBlocked | None = None
    wait_timeout_seconds: float | None = None
    exempt: bool = False
    within: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        parse_pools(known_only(self.pools))
        if not isinstance(self.tags, Mapping):
            raise ClaimError(f"tags={self.tags!r}: a mapping of texts is expected, such as {{'team': 'ml'}}")
        for key, value in self.tags.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ClaimError(f"tags: {key!r}: {value!r}: keys and values of tags are text; write it in quotes")
        _number(self.priority, "priority")
        if self.on_blocked is not None and self.on_blocked not in get_args(OnBlocked):
            choices = ", ".join(map(repr, get_args(OnBlocked)))
            raise ClaimError(f"on_blocked={self.on_blocked!r}: use one of {choices}")
        timeout = self.wait_timeout_seconds
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0):
            raise ClaimError(f"wait_timeout_seconds={timeout!r}: a number of seconds of at least 0 is expected")
        if timeout is not None and self.on_blocked in ("skip", "fail"):
            raise ClaimError(
                f'wait_timeout_seconds={timeout:g} with on_blocked="{self.on_blocked}": '
                "that one never waits; leave one of them out"
            )
        if self.within is not None:
            from penstock.config import check_within  # noqa: PLC0415  # few DAGs say it

            check_within(self.within)


def said_in_conf(conf: Mapping[str, Any] | None) -> Said:
    """What the conf of a run says of it. Raises ClaimError on what is wrong there."""
    block = (conf or {}).get(CONF_KEY)
    if block is None:
        return Said()
    where = f'conf["{CONF_KEY}"]'
    if not isinstance(block, Mapping):
        raise ClaimError(f"{where}: {block!r}: a mapping is expected, with any of {', '.join(_CONF_WORDS)}")
    for word in block:
        if word not in _CONF_WORDS:
            near = get_close_matches(str(word), _CONF_WORDS, 1)
            hint = f"is {near[0]!r} meant?" if near else f"use any of {', '.join(_CONF_WORDS)}"
            raise ClaimError(f"{where}: {word!r} is not known; {hint}")
    words = dict(block)
    pools = words.pop("pools", ())
    within = {word: words.pop(word) for word in ("max_concurrent", "tag_concurrency_limits") if word in words}
    try:
        said = Said(
            pools=(pools,) if isinstance(pools, str | Mapping) else tuple(pools), within=within or None, **words
        )
        parse_pools(said.pools)
        if isinstance(said.priority, str):
            raise ClaimError(f"priority={said.priority!r}: a whole number is expected")
    except (ClaimError, TypeError) as error:
        raise ClaimError(f"{where}: {error}") from None
    return said


def known_only(pools: Iterable[PoolsLike]) -> list[PoolsLike]:
    """The pools whose names and slots are no templates. Raises ClaimError on what is neither text nor mapping."""
    known: list[PoolsLike] = []
    for item in pools:
        if isinstance(item, Mapping):
            for name, slots in item.items():
                if not is_template(name):
                    check_pool_name(name)
                if not is_template(slots) and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
                    raise ClaimError(f"pool {name!r}: {slots!r} slots asked; ask for a whole number of at least 1")
            known.append({k: v for k, v in item.items() if not is_template(k) and not is_template(v)})
        elif not isinstance(item, str):
            raise ClaimError(f"{item!r}: a pool is written as 'name', 'name:slots' or {{'name': slots}}")
        elif not is_template(item):
            known.append(item)
    return known


def is_template(value: object) -> bool:
    """Whether the text is one that only a task's context makes sense of."""
    return isinstance(value, str) and any(sign in value for sign in _TEMPLATE_SIGNS)


def _number(value: object, word: str) -> None:
    if value is not None and not is_template(value) and (isinstance(value, bool) or not isinstance(value, int)):
        raise ClaimError(f"{word}={value!r}: a whole number is expected")
