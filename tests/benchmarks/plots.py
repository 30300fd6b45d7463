"""The figures as PNG: throughput against clients, the hand-over's distribution, growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cases import Run


def write(folder: Path, run: Run) -> list[Path]:
    """Write those that have something to show. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawn = {"throughput": _throughput, "hand_over": _hand_over, "growth": _growth}
    written = []
    for name, draw in drawn.items():
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        if draw(axes, run):
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written


def _throughput(axes: Any, run: Run) -> bool:
    clients, *rates = zip(*sorted(run.curve), strict=True) if run.curve else ((),)
    labels = ("raw floor: bare driver", "SA floor: SQLAlchemy Core", "Penstock: acquire + release")
    for label, rate in zip(labels, rates, strict=False):
        axes.plot(clients, rate, marker="o", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="client processes",
        ylabel="cycles a second, all together",
        title="PostgreSQL, one limit with room",
    )
    axes.set_xticks(clients, [str(count) for count in clients], minor=False)
    low, high = axes.get_ylim()
    ticks = [step * 10**power for power in range(6) for step in (1, 2, 5) if low <= step * 10**power <= high]
    axes.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    _legend(axes)
    return bool(run.curve)


def _hand_over(axes: Any, run: Run) -> bool:
    milliseconds = sorted(seconds * 1000 for seconds in run.hand_over_seconds)
    share = [100 * (number + 1) / len(milliseconds) for number in range(len(milliseconds))]
    axes.step(milliseconds, share, where="post", label=f"{len(milliseconds)} hand-overs")
    axes.axvline(10, linestyle="--", color="grey", label="bar: p50 ≤ 10 ms")
    axes.axvline(100, linestyle=":", color="grey", label="bar: p99 ≤ 100 ms")
    axes.set(
        xscale="log",
        xlabel="ms from `release` to the next waiter's code",
        ylabel="% of hand-overs within it",
        title="Hand-over on PostgreSQL, limit 1",
    )
    _legend(axes)
    return bool(milliseconds)


def _growth(axes: Any, run: Run) -> bool:
    for what, points in run.growth.items():
        sizes, seconds = zip(*points, strict=True)
        axes.plot(sizes, [taken / seconds[0] for taken in seconds], marker="o", label=what)
    axes.axhline(1, linestyle="--", color="grey")
    axes.set(
        xscale="log",
        xlabel="how many",
        ylabel="median time, ratio to the fewest",
        title="Growth on PostgreSQL",
    )
    axes.set_ylim(bottom=0)
    _legend(axes)
    return bool(run.growth)


def _legend(axes: Any) -> None:
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
