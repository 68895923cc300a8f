"""The benchmarks run; what they say is not looked at here."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from asyncmig.stores.containerd._pb.containerd.services.content.v1 import Info, UpdateRequest
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    DeleteRequest,
    Resource,
)
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotRequest
from asyncmig.stores.containerd._pb.google.protobuf import FieldMask
from benchmarks.baseline import BaselineError, find_baseline
from benchmarks.baseline.recording import as_call, in_phases
from benchmarks.latency import Latencies, bucket_of
from tests.interop.conftest import ContainerdFactory

ROOT = Path(__file__).parents[2]


def table(module: str, *args: str) -> list[str]:
    """The rows that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_offline() -> None:
    rows = table("offline", "--records", "50", "--repeat", "1")
    assert rows[2].startswith("| 50 |")


LIVE = ("live", "--records", "30", "--concurrency", "1", "4", "--backend", "asyncio", "--on")


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_live(place: str, containerd_factory: ContainerdFactory) -> None:
    rows = table(*LIVE, place, "--without-go")
    assert [row.split(" | ")[:4] for row in rows[2:4]] == [
        [f"| {place}", "30", "asyncio", "1"],
        [f"| {place}", "30", "asyncio", "4"],
    ]
    assert [row.split(" | ")[3:6:2] for row in rows[7:] if " | create | " in row] == [["1", "30"], ["4", "30"]]


def test_live_beside_the_go_client(containerd_factory: ContainerdFactory) -> None:
    problem = find_baseline("live")
    if problem is not None:
        pytest.skip(problem)  # it is for the benchmarks only, so that nothing requires it here
    rows = table(*LIVE, "tmpfs")
    assert [row.split(" | ")[6].endswith(" times") for row in rows[2:4]] == [True, True]


def test_calls_are_replayed_in_phases_of_chains() -> None:
    """Calls for one lease stay in order; what the pipeline does one after the other is not made at a time."""
    one, two = [
        [as_call(CreateRequest(id=name)), as_call(AddResourceRequest(id=name, resource=Resource(id="r", type="content")))]
        for name in ("1", "2")
    ]
    stats = [as_call(StatSnapshotRequest(snapshotter="native", key=name)) for name in ("a", "b")]
    updates = [as_call(UpdateRequest(info=Info(digest="d"), update_mask=FieldMask(paths=["labels.x"])))] * 2
    recorded = [*stats, one[0], two[0], two[1], one[1], *updates]
    assert in_phases(recorded) == [[[stats[0]], [stats[1]]], [one, two], [[updates[0]], [updates[1]]]]


def test_a_call_that_the_go_client_does_not_know() -> None:
    with pytest.raises(BaselineError, match="does not know DeleteRequest"):
        as_call(DeleteRequest(id="x"))


def test_percentiles_of_latencies() -> None:
    counts: Counter[int] = Counter(bucket_of(microseconds / 1e6) for microseconds in [100] * 90 + [1000] * 9 + [10_000])
    latencies = Latencies.of("create", counts)
    assert latencies.calls == 100
    assert [latencies.percentile(percent) for percent in (50, 90, 99, 100)] == [100, 100, 1000, 10_000]


@pytest.mark.parametrize("args", [[], ["--live"]], ids=["offline", "live"])
def test_loop_lag(args: list[str], containerd_factory: ContainerdFactory) -> None:
    assert table("loop_lag", "--records", "50", *args)[-1].startswith("100.0% of")
