"""Reading ahead: what is asked of the kernel, when it is left alone, and that nothing else depends on it."""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from asyncmig.bolt import Checkpoint, Db, PageFile, ahead, check, dump, freememory, verify_pages
from asyncmig.bolt.ahead import read_ahead
from asyncmig.bolt.pagefile import Claim, Page
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import AsyncmigError
from tests.bolt.helpers import fill, new_db
from tests.bolt.mutate import mutate, sample

WINDOW = ahead._WINDOW


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of several windows."""
    path = fill(new_db(tmp_path / "db"), 6000, value=b"v" * 200)
    assert path.stat().st_size > 5 * WINDOW
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Start and end of what the kernel is asked to read; each time the file must be open."""
    calls: list[tuple[int, int]] = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        os.fstat(fd)
        calls.append((offset, offset + length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return calls


@contextmanager
def opened(path: Path) -> Iterator[PageFile]:
    with Db.open(path) as db:
        assert db.pages is not None
        yield db.pages


# -- what is asked for


def test_all_pages_in_use_are_asked_for_in_order(large: Path, asked: list[tuple[int, int]]) -> None:
    os.truncate(large, large.stat().st_size + 10 * WINDOW)  # a file is often longer than what is in use
    with opened(large) as pages:
        read_ahead(pages, no_checkpoint)
        end = pages.high_water_mark * pages.page_size
    assert asked[0][0] == 0
    assert [start for start, _ in asked[1:]] == [stop for _, stop in asked[:-1]]
    assert asked[-1][1] == end
    assert max(stop - start for start, stop in asked) == WINDOW


def verify(path: Path) -> None:
    with opened(path) as pages:
        verify_pages(pages)


def dumped(path: Path) -> list[str]:
    with Db.open(path) as db:
        return list(dump(db))


@pytest.mark.parametrize("walk", [check, verify, dumped])
def test_whatever_goes_through_a_whole_file_asks_for_it(
    walk: Callable[[Path], object], large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first page of a tree is read."""
    order: list[str] = []
    real = PageFile.tree_page

    def tree_page(pages: PageFile, page_id: int, claim: Claim | None = None) -> tuple[Page, bool]:
        order.append("page")
        return real(pages, page_id, claim)

    monkeypatch.setattr(os, "posix_fadvise", lambda *_: order.append("ahead"))
    monkeypatch.setattr(PageFile, "tree_page", tree_page)
    walk(large)
    assert order.index("page") == order.count("ahead") > 5


# -- when nothing is asked for


def test_a_file_that_does_not_fit_into_memory(
    large: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_ALWAYS", WINDOW)
    with opened(large) as pages:
        size = pages.high_water_mark * pages.page_size
        for memory in (None, 0, size, 2 * size - 1):
            monkeypatch.setattr(ahead, "free_memory", lambda memory=memory: memory)
            read_ahead(pages, no_checkpoint)
            assert not asked
        monkeypatch.setattr(ahead, "free_memory", lambda: 2 * size)
        read_ahead(pages, no_checkpoint)
        assert asked


def test_a_small_file_is_read_ahead_whatever_memory_there_is(
    large: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "free_memory", lambda: None)
    with opened(large) as pages:
        read_ahead(pages, no_checkpoint)
    assert asked


def test_a_file_of_holes_is_not_brought_into_memory(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    path = new_db(tmp_path / "db")
    with opened(path) as pages:
        pages.high_water_mark = 1 + pages.allocated * ahead._HOLES // pages.page_size
        read_ahead(pages, no_checkpoint)
        assert not asked
        pages.high_water_mark -= 1
        read_ahead(pages, no_checkpoint)
        assert asked


@pytest.mark.parametrize("code", ["ENOSYS", "EINVAL", "ESPIPE", "EIO"])
def test_where_the_kernel_does_not_do_it(code: str, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(getattr(errno, code), code)

    expected = check(large)
    monkeypatch.setattr(os, "posix_fadvise", fail)
    assert check(large) == expected
    assert calls == 1


def test_where_there_is_no_such_call(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = check(large)
    monkeypatch.delattr(os, "posix_fadvise")
    assert check(large) == expected


# -- nothing depends on it


def seen_of(path: Path) -> tuple[object, object]:
    """All that a check finds in a file, and a dump of it or its error."""
    try:
        with Db.open(path) as db:
            lines: object = list(dump(db))
    except AsyncmigError as error:
        lines = str(error)
    return check(path), lines


@pytest.mark.parametrize("seed", range(30))
def test_what_is_read_is_the_same_with_and_without(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of damaged files, too."""
    rng = random.Random(seed)
    sound = sample(tmp_path / "sound", rng.choice([1024, 4096]), freelist=rng.random() < 0.5)
    path = tmp_path / "db"
    path.write_bytes(sound.data if seed == 0 else mutate(rng, sound)[1])
    found = seen_of(path)
    monkeypatch.setattr(sys.modules[verify_pages.__module__], "read_ahead", lambda *_: None)
    assert seen_of(path) == found


# -- cancellation


class Cancelled(Exception):
    pass


def test_a_stop_takes_effect_before_the_next_window(large: Path, asked: list[tuple[int, int]]) -> None:
    def checkpoint() -> None:
        if len(asked) == 3:
            raise Cancelled

    with opened(large) as pages, pytest.raises(Cancelled):
        verify_pages(pages, checkpoint)
    assert len(asked) == 3


@pytest.mark.anyio
async def test_a_cancelled_caller_can_close_the_file(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file without end, only a cancellation ends the reading ahead; each time the file must be open."""
    begun = anyio.Event()
    is_over = False

    def advise(fd: int, *_: int) -> None:
        os.fstat(fd)
        if not begun.is_set():
            anyio.from_thread.run_sync(begun.set)

    def walk(checkpoint: Checkpoint) -> None:
        nonlocal is_over
        with opened(large) as pages:
            pages.high_water_mark = 1 << 40
            try:
                read_ahead(pages, checkpoint)
            finally:
                is_over = True

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(ahead, "_is_worth_it", lambda *_: True)
    async with anyio.create_task_group() as group:
        group.start_soon(in_thread, walk)
        await begun.wait()
        group.cancel_scope.cancel()
    assert is_over


# -- free memory


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1 GB free and no control groups, as files below a directory."""
    for name, file in (("_MEMINFO", "meminfo"), ("_OWN_GROUPS", "cgroup"), ("_GROUPS", "groups")):
        monkeypatch.setattr(freememory, name, tmp_path / file)
    (tmp_path / "meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable:    1000000 kB\nSwapFree: 1 kB\n")
    return tmp_path


def group(machine: Path, name: str, text: str) -> None:
    path = machine / "groups" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_available_counts(machine: Path) -> None:
    assert freememory.free_memory() == 1_024_000_000
    (machine / "cgroup").write_text("0::/user.slice\n")
    assert freememory.free_memory() == 1_024_000_000


def test_the_tightest_limit_upwards_counts(machine: Path) -> None:
    (machine / "cgroup").write_text("0::/a/b\n")
    group(machine, "a/b/memory.max", "max\n")
    assert freememory.free_memory() == 1_024_000_000
    group(machine, "a/memory.max", "5000000\n")
    assert freememory.free_memory() == 5_000_000
    group(machine, "a/b/memory.max", "7000000\n")
    assert freememory.free_memory() == 5_000_000
    group(machine, "memory.max", "3000000\n")
    assert freememory.free_memory() == 3_000_000


def test_a_limit_of_the_first_version_in_a_container(machine: Path) -> None:
    """Where the path is that of the machine outside, and the group itself is mounted."""
    (machine / "cgroup").write_text("12:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n0::/docker/x\n")
    group(machine, "memory/memory.limit_in_bytes", "6000000\n")
    assert freememory.free_memory() == 6_000_000


@pytest.mark.parametrize("text", ["", "MemFree: 12 kB\n", None])
def test_memory_that_can_t_be_told(text: str | None, machine: Path) -> None:
    if text is None:
        (machine / "meminfo").unlink()
    else:
        (machine / "meminfo").write_text(text)
    assert freememory.free_memory() is None


def test_the_memory_of_this_machine_can_be_told() -> None:
    memory = freememory.free_memory()
    assert memory is not None
    assert memory > 0
