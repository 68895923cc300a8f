"""Looks at many files: whatever threads there are, results, errors and progress are those of a loop."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from asyncmig.bolt.walk import no_checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError
from asyncmig.stores.offline import looking
from asyncmig.stores.offline.content import OfflineContent
from asyncmig.stores.offline.files import OfflineFiles
from asyncmig.stores.offline.looking import look_at_all
from asyncmig.stores.ports import HEAD_SIZE, ContentInfo
from tests.caches import digest

ALONE = looking._TURN
"""Looks that are made in any case before others are called to help."""
MANY = ALONE + 20 * looking._BATCH


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """All looks are taken for slow."""
    monkeypatch.setattr(looking, "_SLOW", 0.0)


def nowhere(_: int) -> None:
    """Items that are no files."""


def looking_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "asyncmig-looking"]


# -- who looks


@pytest.mark.parametrize("count", [0, 1, ALONE, ALONE + 1, ALONE + looking._BATCH + 1, MANY])
def test_results_are_in_the_order_of_the_items(count: int, slow: None) -> None:
    told: list[int] = []
    assert look_at_all(no_checkpoint, lambda i: i * 2, range(count), nowhere, told.append) == [i * 2 for i in range(count)]
    assert sum(told) == count
    assert all(step > 0 for step in told)
    assert not looking_threads()


def test_slow_looks_are_shared_by_eight_threads(slow: None) -> None:
    """Each look waits for seven others at the same time."""
    meeting = threading.Barrier(looking._LOOKERS)
    busy, most, lock = 0, 0, threading.Lock()

    def look(item: int) -> int:
        nonlocal busy, most
        if item >= ALONE:
            with lock:
                busy += 1
                most = max(most, busy)
            meeting.wait(60)
            with lock:
                busy -= 1
            meeting.wait(60)
        return item

    items = range(ALONE + looking._LOOKERS * looking._BATCH)
    assert look_at_all(no_checkpoint, look, items, nowhere) == list(items)
    assert most == looking._LOOKERS == 8
    assert not looking_threads()


def test_quick_looks_are_made_by_the_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "perf_counter", lambda: 0.0)
    found = look_at_all(no_checkpoint, lambda _: threading.get_ident(), range(MANY), nowhere)
    assert set(found) == {threading.get_ident()}


@pytest.mark.parametrize(("slow_ones", "helped"), [(looking._SLOW_ONES - 1, False), (looking._SLOW_ONES, True)])
def test_a_few_slow_looks_call_nobody(slow_ones: int, helped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    called: list[int] = []

    def look(item: int) -> None:
        nonlocal now
        now += 1.0 if item % ALONE < slow_ones else 0.0

    def call_helpers(crew: object, helpers: object) -> None:
        called.append(1)

    monkeypatch.setattr(looking, "perf_counter", lambda: now)
    monkeypatch.setattr(looking._Crew, "_call_helpers", call_helpers)
    look_at_all(no_checkpoint, look, range(10 * ALONE), nowhere)
    assert bool(called) is helped


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("started", [0, 3])
def test_without_threads_those_that_there_are_do_it(
    started: int, error: Exception, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, starts = threading.Thread.start, 0

    def start(thread: threading.Thread) -> None:
        nonlocal starts
        starts += 1
        if starts > started:
            raise error
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert look_at_all(no_checkpoint, lambda i: -i, range(MANY), nowhere) == [-i for i in range(MANY)]
    assert starts == started + 1
    assert not looking_threads()


# -- in which order


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files whose order by name is another than that by inode."""
    names = [f"{i:04}" for i in range(MANY)]
    random.Random(1).shuffle(names)
    for name in names:
        (tmp_path / name).touch()
    return sorted(tmp_path.iterdir())


def test_the_order_is_that_of_the_inodes(files: list[Path], slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_LOOKERS", 1)
    order: list[Path] = []
    gone = [files[0].parent / "gone", files[0].parent / "elsewhere" / "x"]
    look_at_all(no_checkpoint, order.append, [*files[:ALONE], *gone, *files[ALONE:]], str)
    assert order[:ALONE] == files[:ALONE]
    assert order[ALONE:-2] == sorted(files[ALONE:], key=lambda path: path.stat().st_ino)
    assert order[-2:] == gone


def test_a_directory_that_holds_mostly_others_is_not_read_to_its_end(
    files: list[Path], slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_OTHERS", 0)
    read = 0
    real = os.scandir

    class Counting:
        def __init__(self, path: str) -> None:
            self._entries = real(path)

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def __iter__(self) -> Counting:
            return self

        def __next__(self) -> os.DirEntry[str]:
            nonlocal read
            read += 1
            return next(self._entries)

    monkeypatch.setattr(os, "scandir", Counting)
    wanted = files[: ALONE + looking._FEW + 1]
    assert look_at_all(no_checkpoint, lambda path: path, wanted, str) == wanted
    assert looking._FEW < read <= looking._FEW + 2 < len(files)


@pytest.mark.parametrize("code", ["EIO", "EMFILE", "EACCES"])
def test_a_directory_that_can_t_be_read_is_no_obstacle(
    code: str, files: list[Path], slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, "scandir", fail)
    assert look_at_all(no_checkpoint, lambda path: path, files, str) == files


def test_an_item_may_come_twice(files: list[Path], slow: None) -> None:
    items = [*files, *files[::-1], files[3], files[3]]
    assert look_at_all(no_checkpoint, lambda path: path.name, items, str) == [path.name for path in items]


# -- errors


@pytest.mark.parametrize("seed", range(20))
def test_the_error_of_the_first_that_fails_is_raised(seed: int, slow: None) -> None:
    bad = set(random.Random(seed).sample(range(MANY), random.Random(seed).choice([1, 2, 30])))

    def look(item: int) -> int:
        if item in bad:
            raise StoreError(f"item {item}")
        return item

    for _ in range(3):
        with pytest.raises(StoreError, match=f"^item {min(bad)}$"):
            look_at_all(no_checkpoint, look, range(MANY), nowhere)
        assert not looking_threads()


def test_a_look_that_fails_stops_all_others(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk in trouble may take half a minute for each."""
    crews: list[looking._Crew[int, None]] = []
    looked: list[int] = []
    batches = looking._Crew._batches

    def note(crew: looking._Crew[int, None]) -> Iterator[list[int]]:
        crews.append(crew)
        return batches(crew)

    def look(item: int) -> None:
        if item == ALONE:
            raise StoreError("the first")
        looked.append(item)
        while item > ALONE and not crews[0]._over:
            time.sleep(0.001)

    monkeypatch.setattr(looking._Crew, "_batches", note)
    with pytest.raises(StoreError, match="the first"):
        look_at_all(no_checkpoint, look, range(MANY), nowhere)
    assert len(looked) < ALONE + looking._LOOKERS


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_lacked_something_is_tried_once_more_alone(error: Exception, slow: None) -> None:
    """Eight threads take more of everything than one."""
    failed: set[int] = set()
    told: list[int] = []

    def look(item: int) -> int:
        if item >= ALONE and looking_threads():
            failed.add(item)
            raise error
        return item

    assert look_at_all(no_checkpoint, look, range(MANY), nowhere, told.append) == list(range(MANY))
    assert failed
    assert sum(told) == MANY


def test_memory_that_suffices_for_nobody(slow: None) -> None:
    def look(item: int) -> int:
        if item == MANY - 1:
            raise MemoryError
        return item

    with pytest.raises(MemoryError):
        look_at_all(no_checkpoint, look, range(MANY), nowhere)
    assert not looking_threads()


# -- cancellation


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("at", [0, 5, 40, 100])
def test_a_stop_leaves_no_thread(at: int, slow: None) -> None:
    count = 0
    looks: list[int] = []

    def checkpoint() -> None:
        nonlocal count
        count += 1
        if count > at:
            raise Cancelled

    with pytest.raises(Cancelled):
        look_at_all(checkpoint, looks.append, range(1000 * MANY), nowhere)
    assert not looking_threads()
    assert len(looks) < 1000 * MANY


@pytest.mark.anyio
async def test_a_cancelled_caller_waits_for_the_looks_under_way_and_no_more(
    slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helpers look until somebody waits for their end, the caller goes on until it is cancelled."""
    caller: list[int] = []
    under_way: list[int] = []
    ended: list[int] = []
    all_under_way, joined = anyio.Event(), threading.Event()
    token = anyio.lowlevel.current_token()
    join = threading.Thread.join

    def joining(thread: threading.Thread, timeout: float | None = None) -> None:
        joined.set()
        join(thread, timeout)

    def look(item: int) -> None:
        if threading.get_ident() in caller:
            return
        under_way.append(item)
        if len(under_way) == looking._LOOKERS - 1:
            anyio.from_thread.run_sync(all_under_way.set, token=token)
        joined.wait(60)
        ended.append(item)

    def work(checkpoint: Callable[[], None]) -> None:
        caller.append(threading.get_ident())
        look_at_all(checkpoint, look, range(5_000_000), nowhere)

    monkeypatch.setattr(threading.Thread, "join", joining)
    monkeypatch.setattr(looking, "_in_order_of_inodes", lambda checkpoint, items, begin, path_of: range(begin, len(items)))
    monkeypatch.setattr(looking, "drop", lambda *_: None)
    async with anyio.create_task_group() as group:
        group.start_soon(in_thread, work)
        await all_under_way.wait()
        group.cancel_scope.cancel()
    assert not looking_threads()
    assert sorted(ended) == sorted(under_way)
    assert len(under_way) == looking._LOOKERS - 1


# -- heads of blobs


@pytest.fixture
def blobs(tmp_path: Path) -> list[ContentInfo]:
    directory = tmp_path / "blobs" / "sha256"
    directory.mkdir(parents=True)
    made = []
    for i in range(MANY):
        name, data = digest(f"blob {i}"), f"blob {i}".encode() * (i % 20)
        (directory / name.partition(":")[2]).write_bytes(data)
        made.append(ContentInfo(name, len(data)))
    return made


def content_of(tmp_path: Path) -> OfflineContent:
    return OfflineContent(OfflineFiles("", "", "buildkit"), tmp_path, lambda _: None)


@pytest.mark.anyio
async def test_heads_are_the_same_whoever_reads_them(
    blobs: list[ContentInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*blobs, ContentInfo("../../etc/passwd", 1), ContentInfo(digest("nowhere"), 1), ContentInfo(blobs[7].digest, 1)]
    expected = [*((f"blob {i}".encode() * (i % 20))[:HEAD_SIZE] for i in range(MANY)), None, None, None]
    assert await content_of(tmp_path).head_many(asked) == expected
    monkeypatch.setattr(looking, "_SLOW", 0.0)
    assert await content_of(tmp_path).head_many(asked) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("threshold", [0.0, 1e9], ids=["eight", "one"])
async def test_the_disk_fails_at_some_blobs_of_many(
    threshold: float, blobs: list[ContentInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_SLOW", threshold)
    bad = {blobs[i].digest.partition(":")[2] for i in (150, 90, 300)}
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StoreError) as caught:
        await content_of(tmp_path).head_many(blobs)
    path = tmp_path / "blobs" / blobs[90].digest.replace(":", "/")
    assert str(caught.value) == (
        f"{path}: cannot read: Input/output error; check the disk. To go on without this blob, move the file away"
    )
    assert not looking_threads()
