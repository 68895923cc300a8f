"""A real containerd that is killed, ended, frozen or gone for good while a cache in it is migrated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig import ContainerdUnavailableError, IncompleteMigrationError, Options, Progress, Stage
from asyncmig.stores.containerd import client
from tests.caches import ROOT, V1Cache
from tests.interop.conftest import ContainerdFactory, containerd_factory  # noqa: F401  (a fixture)
from tests.interop.containerd import Containerd
from tests.interop.livecache import build_cache
from tests.interop.test_containerd_offline import check_garbage_collection, check_leases, read_v2
from tests.states import dump_lines

pytestmark = pytest.mark.anyio

SNAPSHOTTER = "native"
READING = (Stage.RESOLVE, Stage.BLOBS)
TAIL = (Stage.PROTECT, Stage.VERIFY, Stage.RELEASE, Stage.PUBLISH)
WITHIN = [(Stage.PROTECT, 0.05), (Stage.RELEASE, 0.05)]
"""In the middle of the long stages, a little after their begin."""


def cache_of_layers() -> V1Cache:
    """Enough for each stage of the tail to take some tenths of a second."""
    cache = V1Cache()
    for i in range(60):
        cache.layer(f"layer{i:02}", f"layer{i - 1:02}" if i % 10 else "")
    cache.unfinalised("holder", "mutable", "layer05")
    cache.view("view", "layer07")
    return cache


@pytest.fixture
def daemon(containerd_factory: ContainerdFactory) -> Iterator[Containerd]:  # noqa: F811
    with containerd_factory(automatic_gc=False) as running:
        yield running


@pytest.fixture
def worker(daemon: Containerd, tmp_path: Path) -> Path:
    return build_cache(daemon, cache_of_layers(), tmp_path / f"containerd-{SNAPSHOTTER}", snapshotter=SNAPSHOTTER)


class At(Progress):
    """Does something when a stage begins, or a little later."""

    def __init__(self, stage: Stage, do: Callable[[], None], *, delay: float = 0.0) -> None:
        self._stage = stage
        self._do = do
        self._delay = delay
        self._timer: threading.Timer | None = None

    def stage(self, stage: Stage, total: int | None) -> None:
        if stage is self._stage and self._timer is None:
            self._timer = threading.Timer(self._delay, self._do)
            self._timer.start()
            if not self._delay:
                self._timer.join()

    def join(self) -> None:
        assert self._timer is not None, "the stage did not begin"
        self._timer.join()


def live(daemon: Containerd, **options: float) -> Options:
    return Options(address=str(daemon.address), concurrency=4, timeout=options.get("timeout", 30))


def check_finished(daemon: Containerd, worker: Path) -> None:
    """Everything is as after an uninterrupted run, and a collection takes nothing that a record owns."""
    records = read_v2(worker / "metadata_v2.db")
    assert len(records) == 62
    check_leases(daemon, records, SNAPSHOTTER)
    for record in records:
        if not record.is_holder:
            assert ROOT not in daemon.labels("snapshot", record.id, snapshotter=SNAPSHOTTER)
        if record.blob:
            assert ROOT not in daemon.labels("content", record.blob)
    check_garbage_collection(daemon, records, SNAPSHOTTER)
    assert sorted(path.name for path in worker.iterdir()) == ["metadata.db", "metadata_v2.db"]


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize(("stage", "delay"), [(stage, 0.0) for stage in (*READING, *TAIL)] + WITHIN)
async def test_a_restart_in_any_stage_is_waited_for(
    stage: Stage, delay: float, end: str, daemon: Containerd, worker: Path
) -> None:
    restarts: list[threading.Timer] = []

    def interrupt() -> None:
        getattr(daemon, end)()
        restarts.append(threading.Timer(0.3, daemon.start))
        restarts[0].start()

    trouble = At(stage, interrupt, delay=delay)
    try:
        report = await asyncmig.migrate(worker, live(daemon), progress=trouble)
    finally:
        trouble.join()
        restarts[0].join()
    assert (report.counts.leases_created, report.counts.leases_existing) == (62, 0), "its own retries are no foreign leases"
    check_finished(daemon, worker)


@pytest.mark.parametrize(("stage", "delay"), [(stage, 0.0) for stage in (*READING, *TAIL[:3])] + WITHIN)
async def test_a_containerd_that_stays_away(stage: Stage, delay: float, daemon: Containerd, worker: Path) -> None:
    trouble = At(stage, daemon.kill, delay=delay)
    in_tail = stage in TAIL  # in verify nothing is to be read back here, so the next stage meets it
    expected = IncompleteMigrationError if in_tail else ContainerdUnavailableError
    with pytest.raises(expected, match=r"gave up after 0\.5 s") as caught:
        await asyncmig.migrate(worker, live(daemon, timeout=0.5), progress=trouble)
    trouble.join()
    assert not (worker / "metadata_v2.db").exists()
    assert not (worker / "metadata_v2.db.tmp").exists()
    if in_tail:
        assert "run it again" in str(caught.value)
    daemon.start()
    if not in_tail:
        assert daemon.leases() == {}
        assert os.listdir(worker) == ["metadata.db"]
    daemon.collect_garbage()  # whatever was left half done, nothing is lost
    await asyncmig.migrate(worker, live(daemon))
    check_finished(daemon, worker)


async def test_a_containerd_that_is_not_there(daemon: Containerd, worker: Path) -> None:
    daemon.stop()
    start = time.monotonic()
    with pytest.raises(ContainerdUnavailableError, match="version: nobody listens there"):
        await asyncmig.migrate(worker, live(daemon))
    assert time.monotonic() - start < 5, "a wrong address is not waited for"


async def test_a_containerd_that_is_frozen_for_a_while(daemon: Containerd, worker: Path) -> None:
    """It answers late; nothing is lost and nothing is made twice."""
    process = daemon._process
    assert process is not None

    def freeze() -> None:
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (process.pid, signal.SIGCONT)).start()

    trouble = At(Stage.PROTECT, freeze, delay=0.05)
    report = await asyncmig.migrate(worker, live(daemon), progress=trouble)
    trouble.join()
    assert report.counts.leases_created == 62
    check_finished(daemon, worker)


async def test_calls_that_timed_out_are_made_again(daemon: Containerd, worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = daemon._process
    assert process is not None

    def freeze() -> None:
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.7, os.kill, (process.pid, signal.SIGCONT)).start()

    monkeypatch.setattr(client._Outage, "limit_of_call", lambda _: 0.2)
    trouble = At(Stage.PROTECT, freeze, delay=0.05)
    report = await asyncmig.migrate(worker, live(daemon), progress=trouble)
    trouble.join()
    assert report.counts.leases_created == 62
    check_finished(daemon, worker)


# -- asyncmig itself is killed


@pytest.mark.parametrize("stage", ["protect", "release"])
async def test_a_killed_migration_is_completed_by_a_rerun(
    stage: str, daemon: Containerd, worker: Path, anyio_backend: str
) -> None:
    command = [sys.executable, "-m", "asyncmig", "migrate", str(worker), "--address", str(daemon.address)]
    command += ["--concurrency", "2", "--progress", "plain", "--backend", anyio_backend]

    def run_and_kill() -> int:
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(f"{stage}:"):
                    time.sleep(0.04)
                    process.kill()
            return process.wait()

    assert await anyio.to_thread.run_sync(run_and_kill) == -signal.SIGKILL
    assert not (worker / "metadata_v2.db").exists()
    assert (worker / "metadata_v2.db.journal").exists()
    assert daemon.leases()
    daemon.collect_garbage()
    report = await asyncmig.migrate(worker, live(daemon))
    assert "interrupted-before" in {notice.code for notice in report.notices}
    check_finished(daemon, worker)
    assert dump_lines(worker / "metadata_v2.db")
