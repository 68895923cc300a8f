"""What is shown of live migrations: a table of the migrations, one of their calls, and a plot of one migration's calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.latency import Latencies
from benchmarks.model import Result, find
from benchmarks.suite import Column, grid, label, markdown, number

NAME = "live"
DISK, TMPFS = "disk", "tmpfs"
LATENCY = "latency_us "
"""What the series of a verb's calls is called, before the verb."""
ENOUGH = 100
"""Calls of a verb from which on their times have a shape; of some there is a single one in a migration."""

CASE = [
    Column("on", label("on")),
    Column("records", label("records")),
    Column("event loop", label("backend")),
    Column("calls at a time", label("concurrency")),
]


def series(latencies: Sequence[Latencies]) -> dict[str, dict[str, float]]:
    """The calls of each verb, as a result keeps them: upper bound of a bucket in microseconds, and how many."""
    return {LATENCY + verb.verb: {str(bound): count for bound, count in verb.buckets} for verb in latencies}


def latencies(result: Result) -> list[Latencies]:
    """The inverse of :func:`series`."""
    return [
        Latencies(name.removeprefix(LATENCY), [(float(bound), int(count)) for bound, count in buckets.items()])
        for name, buckets in result.series.items()
    ]


def tables(results: list[Result]) -> str:
    """Both tables."""
    caption = f"How long the calls took, of all rounds together; verbs with fewer than {ENOUGH} calls are left out:"
    return "\n\n".join([table(results), caption, latency_table(results)])


def table(results: list[Result]) -> str:
    """The migrations."""
    columns = [
        *CASE,
        Column("seconds", number("seconds", ",.1f")),
        Column("against one at a time", partial(_against_one, results)),
        Column("against the Go client", number("times_go", ".2f", " times")),
        Column("records/s", number("records_a_second")),
        Column("calls/s", number("calls_a_second")),
        Column("client CPU µs a call", number("client_cpu_us_a_call")),
        Column("server CPU µs a call", number("server_cpu_us_a_call")),
        Column("server busy", number("server_busy", ".0%")),
        Column("peak memory", number("peak_mb", ",.0f", " MB")),
    ]
    return markdown(columns, results)


def _against_one(results: list[Result], result: Result) -> str:
    one = find(results, **{**result.case, "concurrency": 1})
    return f"{one.figures['seconds'] / result.figures['seconds']:.2f} times" if one else ""


def latency_table(results: list[Result]) -> str:
    """The calls."""
    head = [*(column.heading for column in CASE), "verb", "calls", "p50 µs", "p90 µs", "p99 µs"]
    rows = [
        [*(column.cell(result) for column in CASE), verb.verb, f"{verb.calls:,}", *_percentiles(verb)]
        for result in results
        for verb in latencies(result)
        if verb.calls >= ENOUGH
    ]
    return grid(head, rows)


def _percentiles(verb: Latencies) -> list[str]:
    return [f"{verb.percentile(percent):,.0f}" for percent in (50, 90, 99)]


def gist(results: list[Result]) -> str:
    """The migrations of the largest cache under asyncio, if that was measured."""
    most = max(int(result.case["records"]) for result in results)
    largest = [result for result in results if result.is_case(records=most)]
    return table([result for result in largest if result.is_case(backend="asyncio")] or largest)


def plot(results: list[Result], directory: Path) -> list[Path]:
    """The calls of the migration that keeps the server busiest: the largest, on the disk, with most calls at a time."""
    from benchmarks import plots  # noqa: PLC0415  (needs matplotlib)

    if not results:
        return []
    busiest = max(results, key=_weight)
    shown = {
        verb.verb: {bound / 1e3: float(count) for bound, count in verb.buckets}
        for verb in latencies(busiest)
        if verb.calls >= ENOUGH
    }
    case = [f"{int(busiest.case['records']):,} records", f"on {busiest.case['on']}", str(busiest.case["backend"])]
    title = f"calls by time: {', '.join(case)}, {busiest.case['concurrency']} at a time"
    return [plots.latency_histogram(directory / "live-latency.svg", title, shown)] if shown else []


def _weight(result: Result) -> tuple[int, bool, int, bool]:
    case = result.case
    return int(case["records"]), case["on"] == DISK, int(case["concurrency"]), case["backend"] == "asyncio"
