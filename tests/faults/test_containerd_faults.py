"""A real containerd that is killed, ended, frozen or gone for good while a cache in it is migrated."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig import (
    ContainerdUnavailableError,
    IncompleteMigrationError,
    IncompleteRollbackError,
    Options,
    Outcome,
    Progress,
    Stage,
)
from asyncmig.migration.semantics import HARDENED, UPSTREAM, Semantics
from tests.caches import ROOT, V1Cache
from tests.clock import SAFETY, Clock
from tests.conftest import copy_tree
from tests.interop.conftest import ContainerdFactory, containerd_factory  # noqa: F401  (a fixture)
from tests.interop.containerd import Containerd
from tests.interop.livecache import build_cache
from tests.interop.test_containerd_offline import check_garbage_collection, check_leases, read_v2
from tests.states import dump_lines, lasting

pytestmark = pytest.mark.anyio

SNAPSHOTTER = "native"
READING = (Stage.RESOLVE, Stage.BLOBS)
SOME = 20
"""Items after which a stage is in its middle.  Counted, not timed: a fast machine would be through before."""


def points(semantics: Semantics, *stages: Stage) -> list[tuple[Semantics, Stage, int]]:
    """When something is to happen: at the begin of each stage, and within the long ones."""
    within = [(Stage.PROTECT, SOME), (Stage.RELEASE, SOME)]
    return [(semantics, stage, done) for stage, done in [*((stage, 0) for stage in stages), *within]]


def name_of(value: object) -> str:
    return str(value.name if isinstance(value, Semantics) else value)


def cache_of_layers() -> V1Cache:
    """Enough for each stage of the tail to take some tenths of a second."""
    cache = V1Cache()
    for i in range(60):
        cache.layer(f"layer{i:02}", f"layer{i - 1:02}" if i % 10 else "")
    cache.unfinalised("holder", "mutable", "layer05")
    cache.view("view", "layer07")
    return cache


@pytest.fixture(scope="module")
def template(containerd_factory: ContainerdFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The cache, and the root of the containerd that has it; made once, because that takes longer than a migration."""
    directory = tmp_path_factory.mktemp("template")
    with containerd_factory(root=directory / "root", automatic_gc=False) as running:
        build_cache(running, cache_of_layers(), directory / f"containerd-{SNAPSHOTTER}", snapshotter=SNAPSHOTTER)
    return directory


@pytest.fixture
def daemon(template: Path, tmp_path: Path, containerd_factory: ContainerdFactory) -> Iterator[Containerd]:  # noqa: F811
    with containerd_factory(root=copy_tree(template / "root", tmp_path / "root"), automatic_gc=False) as running:
        yield running


@pytest.fixture
def worker(template: Path, tmp_path: Path) -> Path:
    return copy_tree(template / f"containerd-{SNAPSHOTTER}", tmp_path / f"containerd-{SNAPSHOTTER}")


class At(Progress):
    """Does something when a stage begins, or when it has done some items."""

    def __init__(self, stage: Stage, do: Callable[[], None], *, done: int = 0) -> None:
        self._stage = stage
        self._do = do
        self._left = done
        self._is_running = False
        self.has_done = False

    def stage(self, stage: Stage, total: int | None) -> None:
        self._is_running = stage is self._stage
        self.advance(0)

    def advance(self, count: int) -> None:
        if self._is_running:
            self._left -= count
            if self._left <= 0:
                self._is_running = False
                self._do()
                self.has_done = True

    def check(self) -> None:
        assert self.has_done, "it did not get that far"


def live(daemon: Containerd, semantics: Semantics = HARDENED, *, timeout: float = 300) -> Options:
    return Options(address=str(daemon.address), concurrency=4, timeout=timeout, semantics=semantics.name)


def check_finished(daemon: Containerd, worker: Path, semantics: Semantics = HARDENED) -> None:
    """Everything is as after an uninterrupted run, and a collection takes nothing that a record owns."""
    records = read_v2(worker / "metadata_v2.db")
    assert len(records) == 62
    check_leases(daemon, records, SNAPSHOTTER, semantics)
    for record in records:
        if not record.is_holder:
            assert ROOT not in daemon.labels("snapshot", record.id, snapshotter=SNAPSHOTTER)
        if record.blob:
            assert ROOT not in daemon.labels("content", record.blob)
    check_garbage_collection(daemon, records, SNAPSHOTTER)
    assert sorted(path.name for path in worker.iterdir()) == ["metadata.db", "metadata_v2.db", "metadata_v2.db.journal"]


class Restart:
    """Ends containerd when it is called, and starts it again a little later."""

    def __init__(self, daemon: Containerd, end: str) -> None:
        self._end = getattr(daemon, end)
        self._timer = threading.Timer(0.3, daemon.start)

    def __call__(self) -> None:
        self._end()
        self._timer.start()

    def join(self) -> None:
        self._timer.join()


RESTARTS = [
    *((*point, "kill") for point in points(HARDENED, *READING, *HARDENED.tail)),
    *((*point, "stop") for point in points(HARDENED, *READING, *HARDENED.tail)),
    *((*point, "kill") for point in points(UPSTREAM, *UPSTREAM.tail)),  # a part, to spare time
]


@pytest.mark.parametrize(("semantics", "stage", "done", "end"), RESTARTS, ids=name_of)
async def test_a_restart_in_any_stage_is_waited_for(
    semantics: Semantics, stage: Stage, done: int, end: str, daemon: Containerd, worker: Path
) -> None:
    restart = Restart(daemon, end)
    trouble = At(stage, restart, done=done)
    try:
        report = await asyncmig.migrate(worker, live(daemon, semantics), progress=trouble)
    finally:
        trouble.check()
        restart.join()
    created = 62 if semantics.leases_holders else 61
    assert (report.counts.leases_created, report.counts.leases_existing) == (created, 0), (
        "its own retries are no foreign leases"
    )
    check_finished(daemon, worker, semantics)


OUTAGES = points(HARDENED, *READING, *HARDENED.tail) + points(UPSTREAM, *UPSTREAM.tail[:3])


@pytest.mark.parametrize(("semantics", "stage", "done"), OUTAGES, ids=name_of)
async def test_a_containerd_that_stays_away(
    semantics: Semantics, stage: Stage, done: int, daemon: Containerd, worker: Path, clock: Clock
) -> None:
    trouble = At(stage, daemon.kill, done=done)
    in_tail = stage in semantics.tail
    expected = IncompleteMigrationError if in_tail else ContainerdUnavailableError
    with pytest.raises(expected, match="gave up after 100 s") as caught:
        await asyncmig.migrate(worker, live(daemon, semantics, timeout=100), progress=trouble)
    trouble.check()
    # In verify nothing is to be read back here, and publishing needs no containerd, so it is release that meets it.
    is_published = semantics is HARDENED and stage in (Stage.VERIFY, Stage.PUBLISH, Stage.RELEASE)
    assert (worker / "metadata_v2.db").exists() is is_published
    assert not (worker / "metadata_v2.db.tmp").exists()
    if in_tail:
        assert "run the migration again" in str(caught.value)
    daemon.start()
    if not in_tail:
        assert daemon.leases() == {}
        assert os.listdir(worker) == ["metadata.db"]
    daemon.collect_garbage()  # whatever was left half done, nothing is lost
    report = await asyncmig.migrate(worker, live(daemon, semantics))
    assert report.outcome is (Outcome.COMPLETED if is_published else Outcome.MIGRATED)
    check_finished(daemon, worker, semantics)


async def test_a_containerd_that_is_not_there(daemon: Containerd, worker: Path, clock: Clock) -> None:
    daemon.stop()
    with pytest.raises(ContainerdUnavailableError, match="version: cannot connect"):
        await asyncmig.migrate(worker, live(daemon))
    assert clock.pauses == 0, "a wrong address is not waited for"


async def test_a_containerd_that_is_frozen_for_a_while(daemon: Containerd, worker: Path) -> None:
    """It answers late; nothing is lost and nothing is made twice."""
    process = daemon._process
    assert process is not None

    def freeze() -> None:
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (process.pid, signal.SIGCONT)).start()

    trouble = At(Stage.PROTECT, freeze, done=SOME)
    report = await asyncmig.migrate(worker, live(daemon), progress=trouble)
    trouble.check()
    assert report.counts.leases_created == 61
    check_finished(daemon, worker)


async def test_calls_that_timed_out_are_made_again(daemon: Containerd, worker: Path, clock: Clock) -> None:
    process = daemon._process
    assert process is not None
    timed_out = threading.Event()

    def put_clock_on() -> None:
        while not timed_out.wait(0.1):
            clock.jump(61)

    passing = threading.Thread(target=put_clock_on)

    def freeze() -> None:
        os.kill(process.pid, signal.SIGSTOP)
        passing.start()

    def thaw(_: int) -> None:
        timed_out.set()
        os.kill(process.pid, signal.SIGCONT)

    clock.on_pause = thaw
    trouble = At(Stage.PROTECT, freeze, done=SOME)
    try:
        report = await asyncmig.migrate(worker, live(daemon, timeout=1e6), progress=trouble)
    finally:
        timed_out.set()
        passing.join()
    trouble.check()
    assert clock.pauses
    assert report.counts.leases_created == 61
    check_finished(daemon, worker)


# -- asyncmig itself is killed


PROGRAM = """
import anyio, asyncmig, os, signal, sys
verb, where, some, worker, address, semantics, backend = sys.argv[1:]

class Die(asyncmig.Progress):
    def stage(self, stage, total):
        self.running, self.done = stage, 0

    def advance(self, count):
        self.done += count
        if self.running == where and self.done >= int(some):
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    options = asyncmig.Options(address=address, semantics=semantics, concurrency=2)
    await getattr(asyncmig, verb)(worker, options, progress=Die())

anyio.run(main, backend=backend)
"""


async def check_killed(
    verb: str, stage: str, daemon: Containerd, worker: Path, backend: str, semantics: Semantics = HARDENED
) -> None:
    """Run a process that is killed in the middle of a stage."""
    command = [sys.executable, "-c", PROGRAM, verb, stage, str(SOME), str(worker), str(daemon.address), semantics.name, backend]
    with anyio.fail_after(SAFETY):
        process = await anyio.run_process(command, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize("stage", ["protect", "release"])
async def test_a_killed_migration_is_completed_by_a_rerun(
    stage: str, semantics: Semantics, daemon: Containerd, worker: Path, anyio_backend: str
) -> None:
    await check_killed("migrate", stage, daemon, worker, anyio_backend, semantics)
    is_published = semantics is HARDENED and stage == "release"
    assert (worker / "metadata_v2.db").exists() is is_published
    assert (worker / "metadata_v2.db.journal").exists()
    assert daemon.leases()
    daemon.collect_garbage()
    report = await asyncmig.migrate(worker, live(daemon, semantics))
    assert report.outcome is (Outcome.COMPLETED if is_published else Outcome.MIGRATED)
    assert "interrupted-before" in {notice.code for notice in report.notes}
    check_finished(daemon, worker, semantics)
    assert dump_lines(worker / "metadata_v2.db")


# -- a rollback


def state_of(daemon: Containerd) -> object:
    """What containerd's metadata says; it is stopped meanwhile.

    But for the view, which no record owns: once it has lost its label, a collection between two runs may take it.
    """
    daemon.stop()
    found = lasting(dump_lines(daemon.root / "io.containerd.metadata.v1.bolt" / "meta.db"))
    daemon.start()
    return [entry for entry in found if "view" not in entry["p"]]


def check_rolled_back(daemon: Containerd, worker: Path, original: object) -> None:
    """Everything is as before the migration, and a collection takes nothing."""
    assert state_of(daemon) == original
    assert sorted(path.name for path in worker.iterdir()) == ["metadata.db", "metadata_v2.db.rolled-back"]
    daemon.collect_garbage()
    assert state_of(daemon) == original


UNDOING = [(stage, done) for stage in (Stage.RESTORE, Stage.UNPROTECT) for done in (0, SOME)]


@pytest.mark.parametrize(("stage", "done"), UNDOING)
async def test_a_restart_in_a_rollback_is_waited_for(stage: Stage, done: int, daemon: Containerd, worker: Path) -> None:
    original = state_of(daemon)
    await asyncmig.migrate(worker, live(daemon))
    restart = Restart(daemon, "kill")
    trouble = At(stage, restart, done=done)
    try:
        await asyncmig.rollback(worker, live(daemon), progress=trouble)
    finally:
        trouble.check()
        restart.join()
    check_rolled_back(daemon, worker, original)


@pytest.mark.parametrize(("stage", "done"), UNDOING)
async def test_a_containerd_that_stays_away_in_a_rollback(
    stage: Stage, done: int, daemon: Containerd, worker: Path, clock: Clock
) -> None:
    original = state_of(daemon)
    await asyncmig.migrate(worker, live(daemon))
    trouble = At(stage, daemon.kill, done=done)
    with pytest.raises(IncompleteRollbackError, match=r"gave up after 100 s.* run the rollback again"):
        await asyncmig.rollback(worker, live(daemon, timeout=100), progress=trouble)
    trouble.check()
    daemon.start()
    daemon.collect_garbage()
    await asyncmig.rollback(worker, live(daemon))
    check_rolled_back(daemon, worker, original)


@pytest.mark.parametrize("stage", ["restore", "unprotect"])
async def test_a_killed_rollback_is_completed_by_a_rerun(
    stage: str, daemon: Containerd, worker: Path, anyio_backend: str
) -> None:
    original = state_of(daemon)
    await asyncmig.migrate(worker, live(daemon))
    await check_killed("rollback", stage, daemon, worker, anyio_backend)
    assert (worker / "metadata_v2.db.journal").exists()
    assert (worker / "metadata_v2.db").exists() is (stage == "restore")
    daemon.collect_garbage()
    await asyncmig.rollback(worker, live(daemon))
    check_rolled_back(daemon, worker, original)
