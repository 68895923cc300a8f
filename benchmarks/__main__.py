"""The entry point of all benchmarks: measure, print tables, keep the results, compare them, show them in the documents.

python -m benchmarks [--suite NAME ...] [--records N ...] [--large] [--repeat N] [--baseline-limit N]
                     [--backend NAME ...] [--on disk tmpfs] [--concurrency N ...]
                     [--scratch DIR] [--out DIR] [--against FILE] [--plots DIR] [--write]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks import bolt, cold, documents, live, loop_lag, memory, offline, startup
from benchmarks.compare import compare
from benchmarks.live_report import DISK, TMPFS
from benchmarks.machine import describe, load_average, machine, versions
from benchmarks.model import Run, load
from benchmarks.suite import Settings, Suite, say

SUITES: list[Suite] = [suite.SUITE for suite in (offline, bolt, memory, loop_lag, startup, cold, live)]
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the benchmarks."""
    arguments = _parser().parse_args()
    if arguments.write:
        _require_matplotlib()
    before = load(arguments.against) if arguments.against else None
    suites = [suite for suite in SUITES if suite.name in arguments.suite]
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="bench-") as scratch:
        settings = Settings(
            scratch=Path(scratch),
            records=arguments.records,
            large=arguments.large,
            repeat=arguments.repeat,
            baseline_limit=arguments.baseline_limit,
            backends=arguments.backend,
            places=arguments.on,
            concurrencies=arguments.concurrency,
        )
        run = _measure(settings, suites, arguments)
    say(f"results: {run.save(arguments.out)}")
    _show(run, suites)
    if before is not None:
        print(f"\n{compare(before, run)}")
    if arguments.plots:
        _plot(run, suites, arguments.plots)
    if arguments.write:
        documents.write(run, suites)


def _parser() -> argparse.ArgumentParser:
    names = [suite.name for suite in SUITES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure asyncmig.")
    parser.add_argument("--suite", nargs="+", choices=names, default=names, help="what to measure (everything)")
    parser.add_argument("--records", type=int, nargs="+", default=[], help="sizes of the caches (each suite has its own)")
    parser.add_argument("--large", action="store_true", help="larger caches too, and the whole baseline for 100,000 records")
    parser.add_argument("--repeat", type=int, default=3, help="rounds, of which the median counts (3); fewer if long")
    parser.add_argument("--baseline-limit", type=int, metavar="N", help="the baseline commits N records; its time is estimated")
    parser.add_argument("--backend", nargs="+", choices=["asyncio", "trio"], default=["asyncio", "trio"])
    parser.add_argument("--on", nargs="+", choices=[DISK, TMPFS], default=[], help="where live migrations are (on disk)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16], help="calls at a time, live (1 and 16)")
    parser.add_argument("--scratch", type=Path, default=Path(), help="directory on the file system to measure on (this one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory for the results (benchmarks/results)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into a directory")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with results that were saved")
    parser.add_argument("--write", action="store_true", help="put tables and plots into README.md and docs/")
    return parser


def _measure(settings: Settings, suites: list[Suite], arguments: argparse.Namespace) -> Run:
    run = Run(
        name="bench-large" if settings.large else "bench",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        arguments={name: getattr(arguments, name) for name in ("suite", "records", "repeat", "on", "concurrency")},
        machine=machine(settings.scratch),
        versions=versions(),
        load_before=load_average(),
    )
    for suite in suites:
        run.results += suite.measure(settings)
    run.left_out = settings.left_out
    run.load_after = load_average()
    return run


def _show(run: Run, suites: list[Suite]) -> None:
    print(describe(run))
    if run.load_before[0] > run.machine["cores"] / 2:
        print("The machine was busy with something else before: don't trust the times.")
    for what in run.left_out:
        print(f"Left out: {what}.")
    for suite in suites:
        if results := run.of(suite.name):
            print(f"\n## {suite.name}\n\n{suite.table(results)}")


def _plot(run: Run, suites: list[Suite], directory: Path) -> None:
    _require_matplotlib()
    for suite in suites:
        if suite.plot:
            suite.plot(run.of(suite.name), directory)


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        sys.exit("plots need matplotlib: pip install '.[bench]'")


if __name__ == "__main__":
    main()
