"""Text that others chose (names, ids, tags, links), made safe for a terminal and for a log of lines."""

from __future__ import annotations

import unicodedata

# Control, format (direction marks among them), surrogate, line and paragraph separator: they act instead of being seen.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINER = "\u200d"  # a format character that emoji are made with


def shown(text: str, *, keep_lines: bool = False) -> str:
    """The text with every character that would act there written as its escape."""
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
