"""How long an embedding event loop waits for its turn while a migration runs.

A task sleeps a millisecond at a time and notes by how much it wakes too late.  Offline the work is done in worker threads;
live, on the very event loop under asyncio, and on one in a thread under trio (which needs root and a containerd).

    python -m benchmarks.loop_lag [--records N] [--backend asyncio|trio] [--live]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import anyio

import asyncmig
from asyncmig import Options
from asyncmig.synth import synthesize

TICK = 0.001


async def measure(worker: Path, options: Options) -> list[float]:
    """Migrate ``worker``; returns the lags in seconds, ascending."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            start = perf_counter()
            await anyio.sleep(TICK)
            lags.append(perf_counter() - start - TICK)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await asyncmig.migrate(worker, options)
        group.cancel_scope.cancel()
    return sorted(lags)


def offline(scratch: Path, records: int, backend: str) -> list[float]:
    """Measure an offline migration."""
    made = synthesize(scratch / "runc-overlayfs", records=records, bare=True)
    return anyio.run(measure, Path(made.directory), Options(semantics="upstream"), backend=backend)


def live(scratch: Path, records: int, backend: str) -> list[float]:
    """Measure a live migration."""
    from benchmarks.live_setup import Prepared  # noqa: PLC0415  (it needs what only tests need)

    prepared = Prepared.make(scratch, records)
    (scratch / "copy").mkdir()
    with prepared.running(scratch / "copy") as (worker, daemon):
        return anyio.run(measure, worker, Options(semantics="upstream", address=str(daemon.address)), backend=backend)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the lag of the event loop during a migration.")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--live", action="store_true", help="against a running containerd")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        measure_in = live if arguments.live else offline
        lags = measure_in(Path(scratch), arguments.records, arguments.backend)
    for share in (0.5, 0.99, 0.999, 1.0):
        lag = lags[min(int(len(lags) * share), len(lags) - 1)]
        print(f"{share:>6.1%} of {len(lags)} turns came at most {lag * 1e3:.1f} ms late")


if __name__ == "__main__":
    main()
