"""Plots as small SVG files that are the same for the same figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

mpl.rcParams |= {
    "svg.hashsalt": "asyncmig",  # without, the names of the elements differ from run to run
    "svg.fonttype": "none",  # text as text: smaller, and can be searched
    "font.size": 9,
}

Lines = Mapping[str, Sequence[tuple[float, float]]]


def against_size(path: Path, title: str, lines: Lines) -> Path:
    """Lines over the number of records, both axes logarithmic."""
    figure, axes = _new(title)
    for name, points in lines.items():
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [y for _, y in ordered], marker="o", markersize=3, linewidth=1.2, label=name)
    _logarithmic(axes)
    axes.set_xlabel("records")
    return _save(figure, axes, path)


def stages(path: Path, title: str, bars: Mapping[str, Mapping[str, float]]) -> Path:
    """A bar for each name, made of the parts that its stages take."""
    figure, axes = _new(title)
    names = list(bars)
    ends = dict.fromkeys(names, 0.0)
    for position, stage in enumerate(dict.fromkeys(stage for parts in bars.values() for stage in parts)):
        widths = [bars[name].get(stage, 0.0) for name in names]
        color = mpl.colormaps["tab20"](position % 20)
        axes.barh(names, widths, left=[ends[name] for name in names], label=stage, color=color)
        for name, width in zip(names, widths, strict=True):
            ends[name] += width
    axes.set_xlabel("seconds")
    return _save(figure, axes, path, beside=True)


def latency_histogram(path: Path, title: str, buckets: Mapping[str, Mapping[float, float]], unit: str = "ms") -> Path:
    """A line for each name over its buckets: how many took at most so long (the bucket's upper bound), and more than the last.

    Both axes are logarithmic; where there is nothing in a bucket, the line has a gap.
    """
    figure, axes = _new(title)
    for name, counts in buckets.items():
        bounds = sorted(counts)
        heights = [counts[bound] or math.nan for bound in bounds]
        axes.plot(bounds, heights, marker="o", markersize=3, drawstyle="steps-pre", linewidth=1.2, label=name)
    _logarithmic(axes)
    axes.set_xlabel(f"at most, in {unit}")
    return _save(figure, axes, path)


def _new(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_axisbelow(True)
    axes.grid(visible=True, which="major", linewidth=0.3)
    return figure, axes


def _logarithmic(axes: Axes) -> None:
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 100:  # too few powers of ten to read anything from
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _save(figure: Figure, axes: Axes, path: Path, *, beside: bool = False) -> Path:
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {"loc": "best"}
        axes.legend(frameon=False, fontsize=8, **place)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path
