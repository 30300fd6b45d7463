"""Texts that databases, terminals, formats and templates give a meaning to."""

from __future__ import annotations

from penstock.claim import TEXT_MAX_BYTES

TEXTS = {
    "quotes": "a'b\"c`d\\'e\\",
    "sql": "'; DROP TABLE penstock_slot; --",
    "newline": "one\ntwo\r\nthree\ttab",
    "escape": "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "backspace": "safe\x08\x08\x08\x08evil\x7f",
    "direction": "user\u202etxt.exe\u2066\u200f",
    "markup": "[red]a[/red][link=http://x]b[/]",
    "percent": "%s %(id)s %% %d",
    "parameters": ":name :id ? $1 {now} {0} {{}}",
    "emoji": "👩\u200d👩\u200d👧 🏳️\u200d🌈 𝔘𝔫𝔦",
    "key": "pool:a=*:b/c%3A*",
    "json": '{"a": [1, "\\u0000"]}',
    "yaml": "{a: &x [*x]} # - !!python/object:os.system",
    "template": "{{ 7*7 }} ${HOME} $(id) `id`",
    "spaces": " leading and trailing ",
    "long": "x" * 10_000,
    "wide": "𝕏" * (TEXT_MAX_BYTES // 4),
}
SHORT = {name: text for name, text in TEXTS.items() if len(text) < 1000}
"""Those that can stand side by side in a key, or in a table of a host's own."""
NO_TEMPLATES = [text.replace("\r", "") for text in SHORT.values() if "{{" not in text]
"""Those that Airflow takes as they are. To it an argument is a template, in which a line ends with a line feed."""
UNSTORABLE = {
    "nul": "a\x00b",
    "surrogate": "a\udcffb",
    "pair": "\ud83d\ude00",
    "too long": "é" * (TEXT_MAX_BYTES // 2 + 1),
}
# Equal to many a collation; the last ones to a MariaDB that pads with spaces.
ALIKE = ["a", "A", "á", "a\u0301", "ａ", "a ", "a  ", "a\t", " a", "a\u200b", "ß", "ss", "ı", "i", "İ", "K", "\u212a"]


def usable(name: str) -> str:
    """A pool's name as near to the text as one can be."""
    return "".join("_" if character.isspace() or not character.isprintable() else character for character in name)[:255]


def acts(text: str) -> set[str]:
    """The characters in it that a terminal would obey."""
    return {c for c in text if (c < " " and c != "\n") or "\x7f" <= c <= "\x9f" or c in "\u202e\u2066\u200f\u2028"}
