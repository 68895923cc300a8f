"""How much memory a migration takes: the peak of what is no page of a file, at several sizes.

It is sampled from outside.  A line through the sizes tells the part that is always there, most of which is Python with its
modules, and how much each record adds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks import child
from benchmarks.model import Result
from benchmarks.suite import Column, Settings, Suite, label, markdown, number, say

NAME = "memory"
SEMANTICS = ("hardened", "upstream")
MB = 1 << 20


def measure(settings: Settings) -> Iterator[Result]:
    """All sizes with both semantics, then the line through them."""
    for semantics in SEMANTICS:
        points = []
        for records in settings.sizes([1_000, 10_000, 100_000], [1_000_000]):
            say(f"memory: {records:,} records, {semantics}")
            used = _migrate(settings.caches.of(records).restored(), semantics)
            points.append((float(records), used.anonymous))
            figures = {
                "anonymous_mb": used.anonymous,
                "anonymous_before_mb": used.anonymous_before,
                "peak_mb": used.megabytes,
            }
            yield Result(NAME, {"what": semantics, "records": records}, figures)
        if len(points) > 1:
            slope, fixed = fit(points)
            yield Result(NAME, {"what": f"{semantics}, fitted"}, {"anonymous_mb": fixed, "bytes_a_record": slope * MB})


def fit(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and height at 0 of the line through the points."""
    line = statistics.linear_regression(*zip(*points, strict=True))
    return line.slope, line.intercept


def _migrate(worker: Path, semantics: str) -> child.Usage:
    return child.run(
        "extra.update(migrate(*sys.argv[1:]))", str(worker), semantics, setup="from benchmarks.tasks import migrate"
    )


def table(results: list[Result]) -> str:
    """The results; in the row of the fitted line the fixed part and the bytes that each record adds."""
    columns = [
        Column("semantics", label("what")),
        Column("records", lambda result: label("records")(result) if "records" in result.case else "fixed part"),
        Column("anonymous memory", number("anonymous_mb", ",.0f", " MB")),
        Column("before it begins", number("anonymous_before_mb", ",.0f", " MB")),
        Column("bytes a record", number("bytes_a_record")),
        Column("with pages of files", number("peak_mb", ",.0f", " MB")),
    ]
    return markdown(columns, results)


def plot(results: list[Result], directory: Path) -> list[Path]:
    """Memory against size."""
    from benchmarks import plots  # noqa: PLC0415  (needs matplotlib)

    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if "records" in result.case:
            point = (float(result.case["records"]), result.figures["anonymous_mb"])
            lines.setdefault(str(result.case["what"]), []).append(point)
    return [plots.against_size(directory / "memory.svg", "peak anonymous memory in MB", lines)]


SUITE = Suite(NAME, measure, table, plot)
