"""How fast a live migration is, and how much of the server's own speed it reaches.

Makes a synthetic cache in a containerd of its own and migrates fresh copies of it, each in a process of its own, at several
concurrencies; concurrency 1 is the baseline in the same run.  Needs root and a containerd.

There are two yardsticks.  One is containerd's own client in Go (:mod:`benchmarks.live_go`), which makes the same calls.

The other is the server: the CPU time it took, and on a disk also the time of its syncs, which it does one after the other:
two for each change, four for a snapshot's, which is in two databases (counted with strace), at what a sync of a page takes in
the same run.  The share is that time in all the time that went by.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import baseline, child
from benchmarks.baseline.recording import GoRun
from benchmarks.latency import Latencies
from benchmarks.live_go import GoClient
from benchmarks.live_report import DISK, NAME, TMPFS, plot, series, tables
from benchmarks.live_setup import MIGRATE, Prepared
from benchmarks.machine import sync_seconds
from benchmarks.model import Case, Result
from benchmarks.suite import Settings, Suite, medians, say
from tests.interop.containerd import Containerd, find_containerd

MEMORY = Path("/dev/shm")

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
SYNCS = {"create": 2, "add_resource": 2, "update blob": 2, "update snapshot": 4}
"""Syncs that each call costs containerd."""

Buckets = Mapping[str, Counter[int]]
"""How many calls of each verb fell into each bucket of time."""


@dataclass
class _Rounds:
    """What all rounds of one case have found."""

    figures: list[dict[str, float]] = field(default_factory=list)
    buckets: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, figures: dict[str, float], buckets: Buckets) -> None:
        self.figures.append(figures)
        for verb, counts in buckets.items():
            self.buckets.setdefault(verb, Counter()).update(counts)

    def result(self, case: Case) -> Result:
        """The medians, and what follows from them; the latencies of all rounds together."""
        figures = medians(self.figures)
        figures["records_a_second"] = int(case["records"]) / figures["seconds"]
        figures["calls_a_second"] = figures["calls"] / figures["seconds"]
        if "go_seconds" in figures:
            figures["times_go"] = figures["seconds"] / figures["go_seconds"]
        figures["rounds"] = len(self.figures)
        return Result(NAME, case, figures, series([Latencies.of(verb, self.buckets[verb]) for verb in sorted(self.buckets)]))


def measure(settings: Settings) -> Iterator[Result]:
    """All places and sizes."""
    reason = find_containerd()
    if reason:
        settings.leave_out(f"live, because {reason}")
        return
    without_go = baseline.unavailable("live")
    if without_go:
        settings.leave_out(f"live: the client in Go, because {without_go}")
    for place in settings.places or [DISK, *([TMPFS] if settings.large else [])]:
        for records in settings.sizes([1_000], [10_000]):
            with tempfile.TemporaryDirectory(dir=MEMORY if place == TMPFS else settings.scratch, prefix="bench-") as scratch:
                yield from _measure_size(settings, Path(scratch), place, records, with_go=without_go is None)


def _measure_size(settings: Settings, scratch: Path, place: str, records: int, *, with_go: bool) -> Iterator[Result]:
    """All concurrencies and event loops in turn, so that a disk that gets slower meanwhile is as slow for each of them."""
    prepared = Prepared.make(scratch, records)
    copy = scratch / "copy"
    go = GoClient.record(prepared, copy, scratch / "calls.json") if with_go else None
    found: dict[tuple[int, str], _Rounds] = {}
    for turn in settings.rounds():
        for concurrency in settings.concurrencies:
            say(f"live: {records:,} records on {place}, {concurrency} at a time, round {turn + 1}")
            beside = _go_figures(go.run(prepared, copy, concurrency)) if go else {}
            for backend in settings.backends:
                figures, buckets = _migrate(prepared, copy, place, backend, concurrency)
                found.setdefault((concurrency, backend), _Rounds()).add(figures | beside, buckets)
    for (concurrency, backend), rounds in found.items():
        yield rounds.result({"on": place, "records": records, "backend": backend, "concurrency": concurrency})


def _migrate(
    prepared: Prepared, directory: Path, place: str, backend: str, concurrency: int
) -> tuple[dict[str, float], Buckets]:
    """Migrate a fresh copy."""
    with prepared.running(directory) as (worker, daemon):
        os.sync()
        sync = sync_seconds(directory) if place == DISK else 0.0
        before = _cpu_seconds(daemon)
        used = child.run(MIGRATE, str(worker), str(daemon.address), str(concurrency), backend, setup=COUNT_CALLS)
        server = _cpu_seconds(daemon) - before
    buckets = {verb: Counter({int(bucket): count for bucket, count in counts.items()}) for verb, counts in used.extra.items()}
    calls = sum(counts.total() for counts in buckets.values())
    syncs = sum(SYNCS.get(verb, 0) * counts.total() for verb, counts in buckets.items())
    figures = {
        "seconds": used.seconds,
        "calls": calls,
        "client_cpu_us_a_call": used.cpu / calls * 1e6,
        "server_cpu_us_a_call": server / calls * 1e6,
        "syncs": syncs,
        "sync_us": sync * 1e6,
        "server_busy": (server + syncs * sync) / used.seconds,
        "peak_mb": used.megabytes,
    }
    return figures, buckets


def _go_figures(run: GoRun) -> dict[str, float]:
    return {"go_seconds": run.seconds, "go_cpu_us_a_call": run.cpu / run.calls * 1e6}


def _cpu_seconds(daemon: Containerd) -> float:
    """CPU time that the server has taken so far."""
    assert daemon._process is not None
    fields = Path(f"/proc/{daemon._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SUITE = Suite(NAME, measure, tables, plot)
