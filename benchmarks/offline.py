"""How fast an offline migration is.

Each cache is migrated with both semantics, each time in a process of its own and from a fresh copy.  Beside that stand, in the
same rounds on the same file system, what the kernel needs to copy the same databases and sync them, which no migration can
beat, and the baseline: upstream's algorithm, which commits once for each record and call, written in Go with the real bbolt.
What that makes must equal what we make with upstream's semantics, key for key; the benchmark fails if it does not.

The baseline takes minutes for large caches.  There it commits a part of the records only, and its time is an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import baseline, child
from benchmarks.caches import DATABASES, RESULTS, SNAPSHOTTER, PreparedCache, copy_databases
from benchmarks.equality import require_equal
from benchmarks.model import Result, find
from benchmarks.suite import Column, Settings, Suite, grid, label, markdown, medians, number, say
from benchmarks.yardstick import copy_seconds

NAME = "offline"
COPY, BASELINE, UPSTREAM, HARDENED = "copy", "baseline", "upstream", "hardened"
TITLES = {
    HARDENED: "hardened",
    UPSTREAM: "upstream",
    BASELINE: "one commit a call (Go, bbolt)",
    COPY: "`cp` and `fsync`",
}

FULL_BASELINE = 10_000
LARGE_FULL_BASELINE = 100_000
STEADY = 10_000
"""Records from which on it does not count what it takes to get going."""
ESTIMATED = "estimated"
LIMIT = 2_000
"""Records that the baseline commits where it does not commit all of them."""


@dataclass
class _Rounds:
    """The figures and series of each case, a round after the other."""

    figures: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    series: dict[str, list[dict[str, dict[str, float]]]] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, figures: dict[str, float], series: dict[str, dict[str, float]] | None = None) -> None:
        self.figures.setdefault(what, []).append(figures)
        self.series.setdefault(what, []).append(series or {})


def measure(settings: Settings) -> Iterator[Result]:
    """All sizes, the small ones first."""
    reason = baseline.unavailable()
    if reason:
        settings.leave_out(f"offline: the baseline, because {reason}")
    for records in settings.sizes([1_000, 10_000, 100_000], [1_000_000]):
        yield from _measure_size(settings, records, with_baseline=reason is None)


def _measure_size(settings: Settings, records: int, *, with_baseline: bool) -> Iterator[Result]:
    cache = settings.caches.of(records)
    limit = _limit(settings, records)
    rounds = _Rounds()
    for turn in settings.rounds():
        say(f"offline: {records:,} records, round {turn + 1}")
        rounds.add(COPY, {"seconds": copy_seconds([cache.pristine / name for name in DATABASES])})
        made: Path | None = None
        if with_baseline and (turn == 0 or records <= FULL_BASELINE):
            _run_baseline(cache, rounds, records, limit)
            made = None if limit else _set_aside(cache)
        for semantics in (UPSTREAM, HARDENED):
            _run_migration(cache, rounds, records, semantics)
            if semantics == UPSTREAM and made is not None and turn == 0:
                require_equal(made, cache.worker, RESULTS)
                rounds.marks[BASELINE] = ["same result"]
    yield from _results(rounds, records)


def _limit(settings: Settings, records: int) -> int:
    """How many records the baseline commits; 0 is all of them."""
    if settings.baseline_limit is not None:
        limit = settings.baseline_limit
    else:
        limit = 0 if records <= (LARGE_FULL_BASELINE if settings.large else FULL_BASELINE) else LIMIT
    return limit if limit < records else 0


def _run_baseline(cache: PreparedCache, rounds: _Rounds, records: int, limit: int) -> None:
    worker = cache.restored()
    command = [str(baseline.program("offline")), "-snapshotter", SNAPSHOTTER, "-limit", str(limit), str(worker)]
    output, anonymous = child.watch(command)
    report = json.loads(output)
    if report["records"] != records:
        raise RuntimeError(f"the baseline has found {report['records']} records instead of {records}")
    share = records / report["committed"]
    phases = {name: seconds * share for name, seconds in report["phases"].items()}
    figures = {
        "seconds": report["fixed_seconds"] + sum(phases.values()),
        "commits_a_record": report["commits"] / report["committed"],
        "peak_mb": report["peak_mb"],
        "anonymous_mb": anonymous,
    }
    if limit:
        rounds.marks[BASELINE] = [ESTIMATED]
    else:
        figures["cpu_us_a_record"] = report["cpu_seconds"] / records * 1e6
    rounds.add(BASELINE, figures, {"seconds": {"read": report["fixed_seconds"], **phases}})


def _set_aside(cache: PreparedCache) -> Path:
    made = cache.pristine.parent / "baseline"
    copy_databases(cache.worker, made, RESULTS)
    return made


def _run_migration(cache: PreparedCache, rounds: _Rounds, records: int, semantics: str) -> None:
    worker = cache.restored()
    used = child.run(
        "extra.update(migrate(*sys.argv[1:]))", str(worker), semantics, setup="from benchmarks.tasks import migrate"
    )
    if used.extra["records"] != records:
        raise RuntimeError(f"{used.extra['records']} records were migrated instead of {records}")
    figures = {
        "seconds": used.seconds,
        "cpu_us_a_record": used.cpu / records * 1e6,
        "peak_mb": used.megabytes,
        "anonymous_mb": used.anonymous,
    }
    cpu = {stage: seconds / records * 1e6 for stage, seconds in used.extra["cpu"].items()}
    rounds.add(semantics, figures, {"seconds": used.extra["seconds"], "cpu_us_a_record": cpu})


def _results(rounds: _Rounds, records: int) -> Iterator[Result]:
    figures = {what: medians(found) for what, found in rounds.figures.items()}
    for what in (HARDENED, UPSTREAM, BASELINE, COPY):
        if what not in figures:
            continue
        mine = figures[what]
        mine["records_a_second"] = records / mine["seconds"]
        mine["rounds"] = len(rounds.figures[what])
        if what != COPY:
            mine["times_copy"] = mine["seconds"] / figures[COPY]["seconds"]
        if BASELINE in figures and what in (HARDENED, UPSTREAM):
            mine["faster_than_baseline"] = figures[BASELINE]["seconds"] / mine["seconds"]
        series = rounds.series[what]
        by_name = {name: medians([one[name] for one in series]) for name in series[0]}
        yield Result(NAME, {"what": what, "records": records}, mine, by_name, rounds.marks.get(what, []))


# -- tables


def table(results: list[Result]) -> str:
    """The results, and under them the time by stage."""
    columns = [
        Column("records", label("records")),
        Column("semantics", _title),
        Column("seconds", number("seconds", ",.2f")),
        Column("records/s", number("records_a_second")),
        Column("CPU µs a record", number("cpu_us_a_record")),
        Column("peak memory", number("peak_mb", ",.0f", " MB")),
        Column("faster than one commit a call", partial(_faster_than_baseline, results)),
        Column("of copying the files", number("times_copy", ",.1f", " times")),
    ]
    return markdown(columns, results)


def _title(result: Result) -> str:
    return TITLES[str(result.case["what"])]


def _faster_than_baseline(results: list[Result], result: Result) -> str:
    base = find(results, what=BASELINE, records=result.case["records"])
    estimated = base is not None and ESTIMATED in base.marks
    if result is base:
        return "(time estimated)" if estimated else ""
    if "faster_than_baseline" not in result.figures:
        return ""
    return f"{result.figures['faster_than_baseline']:,.1f} times{', estimated' if estimated else ''}"


def stage_table(results: list[Result]) -> str:
    """Seconds and CPU time by stage, a column for each migration."""
    shown = [result for result in results if result.case["what"] in (HARDENED, UPSTREAM)]
    stages = list(dict.fromkeys(stage for result in shown for stage in result.series["cpu_us_a_record"]))
    head = ["stage", *(f"{result.case['records']:,} {result.case['what']}" for result in shown)]
    return grid(head, [[stage, *(_stage_cell(result, stage) for result in shown)] for stage in stages])


def _stage_cell(result: Result, stage: str) -> str:
    seconds, cpu = result.series["seconds"].get(stage), result.series["cpu_us_a_record"].get(stage, 0.0)
    return f"{cpu:.1f} µs" if seconds is None else f"{seconds:.2f} s, {cpu:.1f} µs"


def table_with_stages(results: list[Result]) -> str:
    """Both tables."""
    parts = [table(results), *growth(results), "Seconds and CPU time a record, by stage:", stage_table(results)]
    return "\n\n".join(parts)


def growth(results: list[Result]) -> Iterator[str]:
    """How the CPU time a record grows from the smallest to the largest size, leaving out those in which starting counts."""
    for what in (HARDENED, UPSTREAM):
        found = [result for result in results if result.is_case(what=what) and int(result.case["records"]) >= STEADY]
        if len(found) > 1:
            first, last = found[0], found[-1]
            ratio = last.figures["cpu_us_a_record"] / first.figures["cpu_us_a_record"]
            sizes = f"{first.case['records']:,} to {last.case['records']:,}"
            yield f"From {sizes} records, {what} takes {ratio:.2f} times the CPU time a record."


def plot(results: list[Result], directory: Path) -> list[Path]:
    """Throughput and stages."""
    from benchmarks import plots  # noqa: PLC0415  (needs matplotlib)

    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        point = (float(result.case["records"]), result.figures["records_a_second"])
        name = ", ".join([_title(result).replace("`", ""), *(mark for mark in result.marks if mark == ESTIMATED)])
        lines.setdefault(name, []).append(point)
    largest = max((int(result.case["records"]) for result in results), default=0)
    bars = {
        str(what): found.series["seconds"]
        for what in (HARDENED, UPSTREAM)
        if (found := find(results, what=what, records=largest)) is not None
    }
    return [
        plots.against_size(directory / "throughput.svg", "records a second", lines),
        plots.stages(directory / "stages.svg", f"seconds by stage, {largest:,} records", bars),
    ]


SUITE = Suite(NAME, measure, table_with_stages, plot)
