"""How fast a live migration is, and how much of the server's own speed it reaches.

Makes a synthetic cache in a containerd of its own and migrates fresh copies of it, each in a process of its own, at several
concurrencies; concurrency 1 is the baseline in the same run.  Needs root and a containerd.

    python -m benchmarks.live [--records N ...] [--concurrency N ...] [--backend NAME ...] [--on disk tmpfs] [--write]

There are two yardsticks.  One is containerd's own client in Go (``baseline/live``): beside each run it makes the same calls at
the same concurrency on a fresh copy of the same stores, and must leave the same state in containerd's databases.  It reads no
metadata.db and builds no new one, which the migration does in the same time.

The other is the server: the CPU time it took, and on a disk also the time of its syncs, which it does one after the other:
two for each change, four for a snapshot's, which is in two databases (counted with strace), at what a sync of a page takes in
the same run.  The share is that time in all the time that went by.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks import child
from benchmarks.baseline import BaselineError, program
from benchmarks.baseline.recording import GoRun, replay
from benchmarks.latency import Latencies
from benchmarks.live_setup import Prepared, state_of
from benchmarks.machine import sync_seconds
from tests.interop.containerd import Containerd

README = Path(__file__).parents[1] / "README.md"
PERFORMANCE = README.parent / "docs" / "performance.md"
MARK = "<!-- benchmarks/live.py -->"
END = "<!-- /benchmarks/live.py -->"

COUNT_CALLS = """
from time import perf_counter
from asyncmig.stores.containerd import client
from benchmarks.latency import bucket_of
attempt = client.Client._attempt
async def counted(self, function, name, limit):
    start = perf_counter()
    try:
        return await attempt(self, function, name, limit)
    finally:
        verb, _, about = name.partition(" ")
        if verb == "update":
            verb = f"update {about.split()[0]}"
        buckets = extra.setdefault(verb, {})
        bucket = bucket_of(perf_counter() - start)
        buckets[bucket] = buckets.get(bucket, 0) + 1
client.Client._attempt = counted
worker, address, concurrency, backend = sys.argv[1:]
options = asyncmig.Options(semantics="upstream", address=address, concurrency=int(concurrency))
"""
RECORD_CALLS = """
from benchmarks.baseline.recording import Recorder
recorder = Recorder()
recorder.install()
worker, address, calls = sys.argv[1:]
options = asyncmig.Options(semantics="upstream", address=address)
"""
MIGRATE = "anyio.run(asyncmig.migrate, worker, options, backend=backend)"
SYNCS = {"create": 2, "add_resource": 2, "update blob": 2, "update snapshot": 4}
"""Syncs that each call costs containerd."""


@dataclass(frozen=True)
class Run:
    """One migration: wall time, CPU time of client and server in seconds, peak memory of the client in MB, calls and syncs."""

    place: str
    records: int
    backend: str
    concurrency: int
    seconds: float
    client: float
    server: float
    megabytes: float
    syncs: int
    sync: float
    """Seconds that one sync took, in the same run."""
    latencies: list[Latencies]
    go: GoRun | None
    """The same calls by containerd's Go client, in the same run."""

    @property
    def calls(self) -> int:
        """All calls, and each message of a stream."""
        return sum(verb.calls for verb in self.latencies)

    @property
    def share(self) -> float:
        """The server's busy time in all time."""
        return (self.server + self.syncs * self.sync) / self.seconds

    @property
    def summary(self) -> str:
        """All but the latencies, for whoever waits for the end."""
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self) if field.name != "latencies")


def cpu_seconds(daemon: Containerd) -> float:
    """CPU time that the server has taken so far."""
    assert daemon._process is not None
    fields = Path(f"/proc/{daemon._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    prepared: Prepared, directory: Path, place: str, records: int, backend: str, concurrency: int, go: GoRun | None
) -> Run:
    """Migrate a fresh copy."""
    with prepared.running(directory) as (worker, daemon):
        os.sync()
        sync = sync_seconds(directory) if place == "disk" else 0.0
        before = cpu_seconds(daemon)
        used = child.run(MIGRATE, str(worker), str(daemon.address), str(concurrency), backend, setup=COUNT_CALLS)
        server = cpu_seconds(daemon) - before
    counts = {verb: {int(bucket): count for bucket, count in buckets.items()} for verb, buckets in used.extra.items()}
    latencies = [Latencies.of(verb, counts[verb]) for verb in sorted(counts)]
    return Run(
        place=place,
        records=records,
        backend=backend,
        concurrency=concurrency,
        seconds=used.seconds,
        client=used.cpu,
        server=server,
        megabytes=used.megabytes,
        syncs=sum(SYNCS.get(verb.verb, 0) * verb.calls for verb in latencies),
        sync=sync,
        latencies=latencies,
        go=go,
    )


@dataclass(frozen=True)
class Baseline:
    """The Go client, the calls it is to make, and what must then be in containerd's databases."""

    program: Path
    calls: Path
    state: str

    @classmethod
    def record(cls, prepared: Prepared, directory: Path, calls: Path) -> Baseline:
        """Note the calls of a migration.  That takes memory and time, so it is a run of its own."""
        client = program("live")
        with prepared.copied(directory) as (worker, root):
            with Containerd(directory, root=root, automatic_gc=False) as daemon:
                work = f"backend = 'asyncio'; {MIGRATE}; recorder.write(calls)"
                child.run(work, str(worker), str(daemon.address), str(calls), setup=RECORD_CALLS)
            return cls(client, calls, state_of(root))

    def run(self, prepared: Prepared, directory: Path, concurrency: int) -> GoRun:
        """Let the Go client make the calls on a fresh copy."""
        with prepared.copied(directory) as (_, root):
            with Containerd(directory, root=root, automatic_gc=False) as daemon:
                os.sync()
                run = replay(self.program, self.calls, str(daemon.address), concurrency)
            if state_of(root) != self.state:
                raise BaselineError("the Go client has left another state than the migration")
        return run


def runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """All runs; those of one cache one after the other, and beside those of one concurrency the Go client's."""
    places = {"disk": Path.cwd(), "tmpfs": Path("/dev/shm")}
    for place in arguments.on:
        for records in arguments.records:
            with tempfile.TemporaryDirectory(dir=places[place], prefix="bench-") as scratch:
                prepared = Prepared.make(Path(scratch), records)
                copy = Path(scratch) / "copy"
                recorded = None if arguments.without_go else Baseline.record(prepared, copy, Path(scratch) / "calls.json")
                for concurrency in arguments.concurrency:
                    go = recorded.run(prepared, copy, concurrency) if recorded else None
                    print(f"{go.seconds if go else 0:7.1f} s  {go}", file=sys.stderr, flush=True)
                    for backend in arguments.backend:
                        run = measure(prepared, copy, place, records, backend, concurrency, go)
                        print(f"{run.seconds:7.1f} s  {run.summary}", file=sys.stderr, flush=True)
                        yield run


def table(results: list[Run]) -> str:
    """The results as Markdown."""
    lines = [
        "| on | records | event loop | calls at a time | seconds | against one at a time | against the Go client "
        "| records/s | calls/s | client CPU µs a call | server CPU µs a call | server busy | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in results:
        same = [
            r for r in results if (r.place, r.records, r.backend, r.concurrency) == (run.place, run.records, run.backend, 1)
        ]
        ratio = f"{same[0].seconds / run.seconds:.2f} times" if same else ""
        against_go = f"{run.seconds / run.go.seconds:.2f} times" if run.go else ""
        lines.append(
            f"| {run.place} | {run.records:,} | {run.backend} | {run.concurrency} | {run.seconds:.1f} | {ratio} | {against_go} "
            f"| {run.records / run.seconds:,.0f} | {run.calls / run.seconds:,.0f} | {run.client / run.calls * 1e6:.0f} "
            f"| {run.server / run.calls * 1e6:.0f} | {run.share:.0%} | {run.megabytes:.0f} MB |"
        )
    return "\n".join(lines)


def latency_table(results: list[Run]) -> str:
    """How long the calls took, as Markdown."""
    lines = [
        "| on | records | event loop | calls at a time | verb | calls | p50 µs | p90 µs | p99 µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in results:
        for verb in run.latencies:
            percentiles = " | ".join(f"{verb.percentile(percent):,.0f}" for percent in (50, 90, 99))
            lines.append(
                f"| {run.place} | {run.records:,} | {run.backend} | {run.concurrency} "
                f"| {verb.verb} | {verb.calls:,} | {percentiles} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure live migrations.")
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--backend", nargs="+", choices=["asyncio", "trio"], default=["asyncio", "trio"])
    parser.add_argument("--on", nargs="+", choices=["disk", "tmpfs"], default=["disk", "tmpfs"])
    parser.add_argument("--without-go", action="store_true", help="do not compare with the Go client")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md, its gist into the README")
    arguments = parser.parse_args()
    results = list(runs(arguments))
    print(table(results))
    print(f"\n{latency_table(results)}")
    if arguments.write:
        insert(PERFORMANCE, f"{machine(results)}\n\n{table(results)}")
        most = max(run.records for run in results)
        insert(README, table([run for run in results if run.records == most and run.backend == "asyncio"]))


def machine(results: list[Run]) -> str:
    """What it was measured on."""
    sync = statistics.median([run.sync for run in results if run.place == "disk"] or [0.0])
    version = subprocess.run(["containerd", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return (
        f"containerd {version}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"a sync of 4 KiB on this disk {sync * 1e6:.0f} µs."
    )


def insert(document: Path, text: str) -> None:
    """Replace what stands between the marks in ``document``."""
    pattern = re.compile(f"{re.escape(MARK)}.*?{re.escape(END)}", re.DOTALL)
    document.write_text(pattern.sub(f"{MARK}\n{text}\n{END}", document.read_text()))


if __name__ == "__main__":
    main()
