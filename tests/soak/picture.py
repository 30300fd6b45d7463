"""The picture of a soak: what was held of each limit over the time, against its capacity, with the faults. SVG."""

from __future__ import annotations

from collections.abc import Sequence

from soak.judging import LimitSeen
from soak.record import FaultSeen, Soak

LEFT, WIDTH, PANEL, GAP, LANE = 170, 640, 44, 16, 15
"""Pixels: before the axis of time, of that axis, of one limit's height, between two limits, of a fault's line."""
FILL, LINE, FULL = "#9ecae1", "#3182bd", "#b00"
RESTART = "#e6550d"


def picture(soak: Soak) -> str:
    """A panel for each limit: the average and the most held in each part of the time; below, a line for each fault."""
    kinds = list(dict.fromkeys(fault.kind for fault in soak.faults))
    lanes = GAP + len(soak.limits) * (PANEL + GAP)
    height = lanes + len(kinds) * LANE + 3 * GAP
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for fault in soak.faults:
        if fault.how != "kill -9" or fault.seconds is not None:  # what was away for a while: through all panels
            x = _x(fault.at, soak)
            body.append(f'<path d="M{x:.1f} {GAP}V{lanes + len(kinds) * LANE}" stroke="#ccc" stroke-dasharray="2 3"/>')
    for number, limit in enumerate(soak.limits):
        body += _panel(limit, GAP + number * (PANEL + GAP))
    for number, kind in enumerate(kinds):
        body += _lane(kind, [fault for fault in soak.faults if fault.kind == kind], lanes + number * LANE, soak)
    return "\n".join([*body, *_axis(soak, height - 2 * GAP), "</svg>", ""])


def _panel(limit: LimitSeen, top: float) -> list[str]:
    bottom = top + PANEL
    return [
        f'<text x="{LEFT - 8}" y="{top + PANEL / 2:.0f}" text-anchor="end">{limit.key}</text>',
        f'<text x="{LEFT - 8}" y="{top + PANEL / 2 + 13:.0f}" text-anchor="end" fill="#777">of {limit.capacity}</text>',
        f'<path d="{_steps(limit.held, limit.capacity, top)}V{bottom}H{LEFT}Z" fill="{FILL}"/>',
        f'<path d="{_steps(limit.most, limit.capacity, top)}" fill="none" stroke="{LINE}"/>',
        f'<path d="M{LEFT} {top}H{LEFT + WIDTH}" stroke="{FULL}"/>',
        f'<path d="M{LEFT} {bottom}H{LEFT + WIDTH}" stroke="#999"/>',
    ]


def _steps(values: Sequence[float], capacity: int, top: float) -> str:
    """A path of steps, equal ones in one; above the capacity's line where more was held."""
    width, parts, last = WIDTH / len(values), list[str](), None
    for number, value in enumerate(values):
        if value != last:
            y = top + PANEL * (1 - value / capacity)
            parts.append(
                f"{'M' if last is None else 'H'}{LEFT + number * width:.1f}{' ' if last is None else 'V'}{y:.1f}"
            )
            last = value
    return "".join(parts) + f"H{LEFT + WIDTH}"


def _lane(kind: str, faults: Sequence[FaultSeen], top: float, soak: Soak) -> list[str]:
    middle = top + LANE / 2
    lines = [f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{kind}</text>']
    for fault in faults:
        x, until = _x(fault.at, soak), _x(fault.at + (fault.seconds or 0), soak)
        shape = f'x="{x - 1:.1f}" y="{top + 2}" width="{max(2.0, until - x):.1f}" height="{LANE - 4}"'
        lines.append(f'<rect {shape} fill="{RESTART if fault.seconds is not None else "#555"}"/>')
    return lines


def _axis(soak: Soak, y: float) -> list[str]:
    step = 300 if soak.seconds > 900 else 60
    texts = [
        f'<text x="{_x(second, soak):.1f}" y="{y}" text-anchor="middle">{second // 60} min</text>'
        for second in range(0, int(soak.seconds) + 1, step)
    ]
    caption = "slots held on average (area) and at most (line), capacity (red); how long was away what a fault ended"
    return [*texts, f'<text x="{LEFT + WIDTH / 2}" y="{y + GAP}" text-anchor="middle">{caption}</text>']


def _x(second: float, soak: Soak) -> float:
    return LEFT + WIDTH * second / soak.seconds
