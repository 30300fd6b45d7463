"""`python tests/soak`: write the tables and the picture of core/docs/soak.md anew from what the last soak kept."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak.picture import picture
from soak.record import RESULTS, ROOT, Soak, read, tables

PAGE = ROOT / "core" / "docs" / "soak.md"
PICTURE = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- begin: written by `python tests/soak` -->", "<!-- end -->"


def main() -> None:
    """Write the page's part between the marks, and the picture."""
    if (soak := read()) is None:
        sys.exit(f"{RESULTS}: no figures there; run `pytest tests/soak` first")
    part = f"{BEGIN}\n{told(soak)}\n\n{tables(soak)}\n{END}"
    written, times = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: part, PAGE.read_text(), flags=re.DOTALL
    )
    if times != 1:
        sys.exit(f"{PAGE}: the marks {BEGIN!r} and {END!r} must stand there once")
    PAGE.write_text(written)
    PICTURE.write_text(picture(soak))


def told(soak: Soak) -> str:
    """When it was, on which versions, in which form, how much was done."""
    day = time.strftime("%Y-%m-%d", time.gmtime(soak.at))
    versions = ", ".join(
        version if name == "the store" else f"{name} {version}" for name, version in sorted(soak.versions.items())
    )
    minutes, seconds = divmod(round(soak.seconds), 60)
    return (
        f"{day}; {versions}; {soak.form}, {minutes} min {seconds} s until the last was over. "
        f"{soak.holds} holds, {soak.cut_short} of them cut short by a kill; "
        f"{soak.expired} claims expired; {len(soak.faults)} faults."
    )


if __name__ == "__main__":
    main()
