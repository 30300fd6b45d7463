"""The pages as text: their blocks, tables and words."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "core" / "docs"
HOW, CONFIGURATION, OPERATIONS = (DOCS / f"{name}.md" for name in ("how-it-works", "configuration", "operations"))
FAULTS, SOAK = DOCS / "faults.md", DOCS / "soak.md"
COMING = DOCS / "coming-from-dagster.md"
RECIPES = DOCS / "recipes.md"
SECURITY = DOCS / "security.md"
WEB = DOCS / "web.md"
PAGES = [HOW, CONFIGURATION, OPERATIONS, COMING]
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, in order."""
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def said(page: Path) -> str:
    """The page's words, however its lines are broken, without the marks of emphasis."""
    return " ".join(page.read_text().replace("*", "").split())


def rows(page: Path, after: str) -> list[list[str]]:
    """The rows of the first table after these words (however lines are broken), without its head."""
    words = re.escape(after).replace(r"\ ", r"\s+")
    found = re.search(words + r".*?^((?:\|[^\n]*\n)+)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, after
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()[2:]]


def sources(*folders: str) -> str:
    """The code below these folders, but for the demo's."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if "demo" not in file.parts]
    return "\n".join(file.read_text() for file in files)
