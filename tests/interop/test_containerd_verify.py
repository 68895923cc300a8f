"""Verifying a cache whose stores are in a containerd that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import asyncmig
from asyncmig import LayoutError, Options
from asyncmig.migration.semantics import Semantics
from tests.caches import sample_cache
from tests.interop.containerd import Containerd
from tests.interop.livecache import build_cache

pytestmark = pytest.mark.anyio


@pytest.fixture
def worker(daemon: Containerd, tmp_path: Path) -> Path:
    return build_cache(daemon, sample_cache(), tmp_path / "containerd-native", snapshotter="native")


def verify(daemon: Containerd, worker: Path, backend: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asyncmig", "verify", str(worker), "--address", str(daemon.address), "--backend", backend]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_a_migrated_cache_is_clean_whatever_is_collected(
    semantics: Semantics, daemon: Containerd, worker: Path, anyio_backend: str
) -> None:
    options = Options(address=str(daemon.address), semantics=semantics.name)
    with pytest.raises(LayoutError, match=r"there is no metadata_v2\.db; run 'asyncmig migrate' first"):
        await asyncmig.verify(worker, options)
    await asyncmig.migrate(worker, options)
    before = daemon.leases(), daemon.snapshots("native"), daemon.blobs()
    result = await asyncmig.verify(worker, options)
    assert (daemon.leases(), daemon.snapshots("native"), daemon.blobs()) == before
    assert result.address == str(daemon.address)
    assert result.counts.records == len(sample_cache().records)
    assert result.clean or not semantics.repairs
    daemon.collect_garbage()
    again = await asyncmig.verify(worker, options)
    assert again.findings == result.findings


async def test_the_command_finds_what_is_gone(daemon: Containerd, worker: Path, anyio_backend: str) -> None:
    await asyncmig.migrate(worker, Options(address=str(daemon.address)))
    done = verify(daemon, worker, anyio_backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("clean: ")
    assert f"running, at {daemon.address}" in done.stdout
    daemon.ctr("leases", "rm", "--sync", "d")  # and with it what it held
    done = verify(daemon, worker, anyio_backend)
    assert done.returncode == 3
    assert "finding" in done.stdout.splitlines()[0]
    assert "d" in done.stdout


async def test_a_containerd_that_is_not_there_is_no_finding(daemon: Containerd, worker: Path, anyio_backend: str) -> None:
    await asyncmig.migrate(worker, Options(address=str(daemon.address)))
    daemon.stop()
    done = verify(daemon, worker, anyio_backend)
    assert done.returncode == 1
    assert "cannot connect" in done.stderr
