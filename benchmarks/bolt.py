"""How fast the database of the records is turned into its v2 form, with no store taking part.

It is checked, read and changed, and the new one is written, synced and checked.  Beside that stands what the kernel needs to
copy the file and sync it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks import child
from benchmarks.caches import PreparedCache
from benchmarks.model import Result
from benchmarks.suite import Column, Settings, Suite, label, markdown, medians, number, say
from benchmarks.yardstick import copy_seconds

NAME = "bolt"


def measure(settings: Settings) -> Iterator[Result]:
    """All sizes."""
    for records in settings.sizes([100_000], [1_000_000]):
        cache = settings.caches.of(records)
        figures, seconds, cpu = [], [], []
        for turn in settings.rounds():
            say(f"bolt: {records:,} records, round {turn + 1}")
            copied = copy_seconds([cache.pristine / "metadata.db"])
            used = _rebuild(cache)
            figures.append(_figures(used, records, copied))
            seconds.append(used.extra["seconds"])
            cpu.append({step: taken / records * 1e6 for step, taken in used.extra["cpu"].items()})
        series = {"seconds": medians(seconds), "cpu_us_a_record": medians(cpu)}
        yield Result(NAME, {"records": records}, medians(figures) | {"rounds": len(figures)}, series)


def _figures(used: child.Usage, records: int, copied: float) -> dict[str, float]:
    return {
        "seconds": used.seconds,
        "records_a_second": records / used.seconds,
        "cpu_us_a_record": used.cpu / records * 1e6,
        "peak_mb": used.megabytes,
        "anonymous_mb": used.anonymous,
        "copy_seconds": copied,
        "times_copy": used.seconds / copied,
    }


def _rebuild(cache: PreparedCache) -> child.Usage:
    target = cache.pristine / "rebuilt.db"
    os.sync()
    try:
        return child.run(
            "extra.update(rebuild(*sys.argv[1:]))",
            str(cache.pristine / "metadata.db"),
            str(target),
            setup="from benchmarks.tasks import rebuild",
        )
    finally:
        target.unlink(missing_ok=True)


def table(results: list[Result]) -> str:
    """The results."""
    columns = [
        Column("records", label("records")),
        Column("seconds", number("seconds", ",.2f")),
        Column("records/s", number("records_a_second")),
        Column("CPU µs a record", number("cpu_us_a_record", ",.1f")),
        Column("peak memory", number("peak_mb", ",.0f", " MB")),
        Column("of copying the file", number("times_copy", ",.1f", " times")),
        Column("CPU µs a record by step", _steps),
    ]
    return markdown(columns, results)


def _steps(result: Result) -> str:
    return ", ".join(f"{step} {taken:.1f}" for step, taken in result.series["cpu_us_a_record"].items())


SUITE = Suite(NAME, measure, table)
