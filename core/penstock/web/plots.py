"""Small pictures as SVG, drawn here: no script, no style of their own. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from penstock.report import lasting

SPARK_WIDTH, SPARK_HEIGHT = 120, 24
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 236, 40, 36, 14


@dataclass(frozen=True, slots=True)
class Point:
    """The mean over a span of time that ends at `at` (µs): slots held, claims waiting."""

    at: int
    held: float
    waiting: float


def sparkline(points: Sequence[Point], capacity: int | None) -> Markup:
    """What was held, as a line; full height is the capacity, or the most that was held."""
    if not points:
        return Markup("")
    top = max([capacity or 0, 1, *(point.held for point in points)])
    line = _line([point.held for point in points], SPARK_WIDTH, SPARK_HEIGHT - 2, top, left=0, above=1)
    most = max(point.held for point in points)
    text = f"held: {points[-1].held:.1f} now, at most {most:.1f}"
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{text}">'
        '<polyline class="held" points="{line}"/></svg>'
    ).format(w=SPARK_WIDTH, h=SPARK_HEIGHT, text=text, line=line)


def plot(points: Sequence[Point], capacity: int | None) -> Markup:
    """What was held, an area, and who waited, a line, with the capacity as it is now, and axes."""
    if len(points) < 2:
        return Markup("")
    most = max(max(point.held, point.waiting) for point in points)
    top = _round_up(max(most, capacity or 0, 1))
    inner_width, inner_height = WIDTH - LEFT, HEIGHT - BOTTOM - TOP
    held = _line([point.held for point in points], inner_width, inner_height, top, left=LEFT, above=TOP)
    waiting = _line([point.waiting for point in points], inner_width, inner_height, top, left=LEFT, above=TOP)
    floor = TOP + inner_height
    parts: list[Markup] = []
    for value in sorted({0, top / 2, top}):
        y = _at(value, inner_height, top, TOP)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH, y, y))
        parts.append(Markup('<text x="{}" y="{}" class="end">{}</text>').format(LEFT - 6, y + 4, f"{value:g}"))
    area = Markup('<polygon class="held" points="{} {} {}"/>').format(f"{LEFT},{floor}", held, f"{WIDTH},{floor}")
    parts.append(area)
    parts.append(Markup('<polyline class="waiting" points="{}"/>').format(waiting))
    if capacity is not None:
        y = _at(capacity, inner_height, top, TOP)
        parts.append(Markup('<line class="capacity" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH, y, y))
    # The first point stands at the end of its five minutes, the last one within its own: the scale is in whole hours.
    span = round((points[-1].at - points[0].at) / 3_600_000_000) * 3600.0 or (points[-1].at - points[0].at) / 1_000_000
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = "now" if share == 1 else f"{lasting(span * (1 - share))} ago"
        x = LEFT + inner_width * share
        parts.append(Markup('<text x="{}" y="{}" class="{}">{}</text>').format(f"{x:.0f}", HEIGHT - 10, anchor, text))
    label = f"Held and waiting over the last {lasting(span)}; the table below has the figures"
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(label), Markup("").join(parts)
    )


def _line(values: Sequence[float], width: float, height: float, top: float, *, left: float, above: float) -> str:
    step = width / max(1, len(values) - 1)
    return " ".join(f"{left + step * i:.1f},{_at(v, height, top, above)}" for i, v in enumerate(values))


def _at(value: float, height: float, top: float, above: float) -> float:
    return round(above + height * (1 - value / top), 1)


def _round_up(value: float) -> float:
    """The next figure that reads well on an axis."""
    size = 1.0
    while True:
        for step in (1, 2, 4, 5):
            if value <= step * size:
                return step * size
        size *= 10
