"""How long an embedding event loop waits for its turn while a migration runs in its worker threads.

A task sleeps a millisecond at a time and notes by how much it wakes too late.

    python benchmarks/loop_lag.py [--records N] [--backend asyncio|trio]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import anyio

import asyncmig
from asyncmig.synth import synthesize

TICK = 0.001


async def measure(worker: Path) -> list[float]:
    """Migrate ``worker``; returns the lags in seconds, ascending."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            start = perf_counter()
            await anyio.sleep(TICK)
            lags.append(perf_counter() - start - TICK)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await asyncmig.migrate(worker)
        group.cancel_scope.cancel()
    return sorted(lags)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the lag of the event loop during a migration.")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        made = synthesize(Path(scratch) / "runc-overlayfs", records=arguments.records, bare=True)
        lags = anyio.run(measure, Path(made.directory), backend=arguments.backend)
    for share in (0.5, 0.99, 0.999, 1.0):
        lag = lags[min(int(len(lags) * share), len(lags) - 1)]
        print(f"{share:>6.1%} of {len(lags)} turns came at most {lag * 1e3:.1f} ms late")


if __name__ == "__main__":
    main()
