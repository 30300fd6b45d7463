"""`python tests/faults`: write the table and the plot of core/docs/faults.md anew from what the last runs kept.

A row stays until its test is run again, so each says when it was taken."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from math import log
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.record import FAULTS, LAST_RUN, RESULTS, ROOT, Row, markdown_table, merged, read, write

PAGE = ROOT / "core" / "docs" / "faults.md"
PLOT = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- begin: written by `python tests/faults` -->", "<!-- end -->"
COLOURS = {"sqlite": "#4c78a8", "postgresql": "#54a24b", "mariadb": "#e45756"}
LINE, LEFT, WIDTH = 18, 330, 420
"""Pixels: of a line of the plot, before its axis, of its axis."""
LEAST, MOST = 0.01, 3.0
"""Of the plot's axis: figure as a share of the bar."""


def main() -> None:
    """Write the page's part between the marks, and the plot."""
    if not (new := read(RESULTS)):
        sys.exit(f"{RESULTS}: no figures there; run `pytest tests/faults` first")
    rows = merged(read(LAST_RUN), new)
    write(LAST_RUN, rows)
    text = PAGE.read_text()
    part = f"{BEGIN}\n{dates(rows)}\n\n{markdown_table(rows)}\n{END}"
    written, times = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: part, text, flags=re.DOTALL)
    if times != 1:
        sys.exit(f"{PAGE}: the marks {BEGIN!r} and {END!r} must stand there once")
    PAGE.write_text(written)
    PLOT.write_text(plot(rows))


def dates(rows: Sequence[Row]) -> str:
    """When the figures were taken, on which versions, in which form."""
    days = sorted({time.strftime("%Y-%m-%d", time.gmtime(row.at)) for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    versions = ", ".join(sorted({row.version for row in rows}))
    long = sorted({row.fault for row in rows if row.long}, key=list(FAULTS).index)
    form = f"long form: {', '.join(long)}; the others short" if long else "short form"
    return f"{when}; {versions}; {form}."


def plot(rows: Sequence[Row]) -> str:
    """Each figure that is measured in seconds and the like, as a share of its bar, on a line of its own. SVG."""
    shown = [row for row in rows if row.bar and row.most]
    height = LINE * (len(shown) + 3)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for share in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        x, colour = _x(share), "#b00" if share == 1 else "#ddd"
        body.append(f'<path d="M{x:.0f} {LINE}V{height - 2 * LINE}" stroke="{colour}"/>')
        body.append(f'<text x="{x:.0f}" y="{height - LINE}" text-anchor="middle">{share:g}</text>')
    for number, row in enumerate(shown):
        y, name = LINE * (number + 1.7), f"{row.fault} {row.what}, {row.store}"
        body.append(f'<text x="{LEFT - 8}" y="{y:.0f}" text-anchor="end">{name}</text>')
        body.append(f'<circle cx="{_x(row.figure / row.bar):.0f}" cy="{y - 4:.0f}" r="4" fill="{COLOURS[row.store]}"/>')
    caption = "the figure as a share of its bar; left of 1 the bar is met"
    body.append(f'<text x="{LEFT + WIDTH / 2}" y="{height - 3}" text-anchor="middle">{caption}</text>')
    return "\n".join([*body, "</svg>", ""])


def _x(share: float) -> float:
    inside = min(max(share, LEAST), MOST)
    return LEFT + WIDTH * log(inside / LEAST) / log(MOST / LEAST)


if __name__ == "__main__":
    main()
