"""Text that others chose (names, ids, tags, links), made safe for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.claim import Claim

# Control, format (direction marks among them), surrogate, line and paragraph separator: they act instead of being seen.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
MOST_LISTED = 10
_JOINER = "\u200d"  # a format character that emoji are made with


def shown(text: str, *, keep_lines: bool = False) -> str:
    """The text with every character that would act on the terminal written as its escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _ACTING
        and character != _JOINER
        and not (keep_lines and character == "\n")
        else character
        for character in text
    )


def listed(texts: Sequence[str]) -> str:
    """The first ten in one line, and how many more there are."""
    more = len(texts) - MOST_LISTED
    return ", ".join(map(shown, texts[:MOST_LISTED])) + (f" and {more} more" if more > 0 else "")


def named(claim: Claim) -> str:
    """A claim's label, with its id where the label alone would name many."""
    return claim.label if claim.run_id or claim.op_id else f"{claim.label} {claim.claim_id}"
