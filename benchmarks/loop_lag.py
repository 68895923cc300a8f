"""How long an embedding event loop waits for its turn while a migration runs.

A task sleeps a millisecond at a time and notes by how much it wakes too late, first while nothing else happens, then during a
migration.  Offline the work is done in worker threads; live, on the very event loop under asyncio, and on one in a thread under
trio (which needs root and a containerd).

    python -m benchmarks.loop_lag [--records N] [--backend asyncio|trio] [--live]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import child
from benchmarks.model import Result
from benchmarks.suite import Column, Settings, Suite, label, markdown, number, say

NAME = "loop_lag"
SEMANTICS = "hardened"
SHARES = {"p50_ms": 0.5, "p99_ms": 0.99, "p99.9_ms": 0.999, "max_ms": 1.0}
BOUNDS = [0.1 * 2**i for i in range(14)]
"""Upper bounds of the histogram's buckets in milliseconds."""


def measure(settings: Settings) -> Iterator[Result]:
    """Offline on each event loop."""
    for records in settings.sizes([100_000]):
        for backend in settings.backends:
            say(f"loop lag: {records:,} records under {backend}")
            worker = settings.caches.of(records).restored()
            yield from offline(worker, records, backend)


def offline(worker: Path, records: int, backend: str) -> Iterator[Result]:
    """An offline migration."""
    yield from _results("offline", records, backend, _lags(backend, worker))


def live(scratch: Path, records: int, backend: str) -> Iterator[Result]:
    """A live migration."""
    from benchmarks.live_setup import Prepared  # noqa: PLC0415  (it needs what only tests need)

    prepared = Prepared.make(scratch, records)
    (scratch / "copy").mkdir()
    with prepared.running(scratch / "copy") as (worker, daemon):
        yield from _results("live", records, backend, _lags(backend, worker, str(daemon.address)))


def _lags(backend: str, worker: Path, address: str = "") -> dict[str, list[float]]:
    used = child.run(
        "extra.update(lags(*sys.argv[1:]))",
        backend,
        str(worker),
        SEMANTICS,
        address,
        setup="from benchmarks.tasks import lags",
    )
    return used.extra


def _results(where: str, records: int, backend: str, lags: dict[str, list[float]]) -> Iterator[Result]:
    for during, found in lags.items():
        case: dict[str, str | int] = {"where": where, "during": during, "backend": backend, "records": records}
        yield Result(NAME, case, percentiles(found), {"histogram_ms": histogram(found)})


def percentiles(ascending: Sequence[float]) -> dict[str, float]:
    """How late most turns came at most, in milliseconds, and how many turns there were."""
    last = len(ascending) - 1
    figures = {name: ascending[min(int(len(ascending) * share), last)] * 1e3 for name, share in SHARES.items()}
    return figures | {"turns": len(ascending)}


def histogram(lags: Sequence[float]) -> dict[str, float]:
    """How many turns came late by at most so many milliseconds, and by more than the bound before."""
    counts = dict.fromkeys((f"{bound:.1f}" for bound in BOUNDS), 0.0)
    for lag in lags:
        bound = next((bound for bound in BOUNDS if lag * 1e3 <= bound), BOUNDS[-1])
        counts[f"{bound:.1f}"] += 1
    return counts


def table(results: list[Result]) -> str:
    """The results."""
    columns = [
        Column("migration", label("where")),
        Column("records", label("records")),
        Column("event loop", label("backend")),
        Column("meanwhile", label("during")),
        Column("turns", number("turns")),
        *(Column(name.removesuffix("_ms"), number(name, ",.2f", " ms")) for name in SHARES),
    ]
    return markdown(columns, results)


def plot(results: list[Result], directory: Path) -> list[Path]:
    """How late the turns came."""
    from benchmarks import plots  # noqa: PLC0415  (needs matplotlib)

    shown = {
        f"{result.case['backend']}, {result.case['during']}": {
            float(bound): count for bound, count in result.series["histogram_ms"].items()
        }
        for result in results
    }
    return [plots.latency_histogram(directory / "loop-lag.svg", "turns of the event loop, by how late they came", shown)]


SUITE = Suite(NAME, measure, table, plot)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the lag of the event loop during a migration.")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--live", action="store_true", help="against a running containerd")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as scratch:
        if arguments.live:
            results = list(live(Path(scratch), arguments.records, arguments.backend))
        else:
            settings = Settings(Path(scratch), [arguments.records], backends=[arguments.backend])
            results = list(measure(settings))
    print(table(results))


if __name__ == "__main__":
    main()
