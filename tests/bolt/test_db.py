"""Opening files, the states they may be in, and commits that fail."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncmig.bolt import Db, PageFile, check, dump
from asyncmig.bolt.format import FREELIST, NO_FREELIST, PAGE_HEADER, PAGE_HEADER_SIZE
from asyncmig.bolt.pagefile import Page, decode_freelist, encode_freelist, freelist_pages
from asyncmig.errors import BucketError, CorruptDatabaseError, DatabaseError, UncertainCommitError
from tests.bolt.helpers import (
    PAGE_SIZES,
    Model,
    assert_holds,
    assert_sound,
    contents,
    fill,
    new_db,
    open_bucket,
    patch_metas,
    read_meta,
    updating,
    viewing,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db")


# -- files that are no database


@pytest.mark.parametrize("writable", [False, True])
def test_missing_file(tmp_path: Path, writable: bool) -> None:
    with pytest.raises(DatabaseError, match=r"db: cannot open: No such file or directory"):
        Db.open(tmp_path / "db", writable=writable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writable", [False, True])
def test_directory(tmp_path: Path, writable: bool) -> None:
    with pytest.raises(DatabaseError, match=r"not a regular file|Is a directory"):
        Db.open(tmp_path, writable=writable)


@pytest.mark.parametrize("writable", [False, True])
def test_fifo(tmp_path: Path, writable: bool) -> None:
    """Does not wait for somebody to open the other end."""
    os.mkfifo(tmp_path / "db")
    with pytest.raises(DatabaseError, match=r"not a regular file"):
        Db.open(tmp_path / "db", writable=writable)


def test_device() -> None:
    with pytest.raises(DatabaseError, match=r"/dev/null: not a regular file"):
        Db.open("/dev/null")


def test_path_with_a_nul() -> None:
    with pytest.raises(DatabaseError, match="null"):
        Db.open("a\0b")


@pytest.fixture
def as_nobody(path: Path) -> Iterator[None]:
    """Root may open anything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("as_nobody")
@pytest.mark.parametrize("writable", [False, True])
def test_unreadable_file(tmp_path: Path, path: Path, writable: bool) -> None:
    user = os.geteuid()
    os.seteuid(os.getuid())
    tmp_path.chmod(0o000)
    os.seteuid(user)
    with pytest.raises(DatabaseError, match=r"cannot open: Permission denied"):
        Db.open(path, writable=writable)


@pytest.mark.parametrize("content", [b"x", b"not a database " * 1000, bytes(100_000)])
@pytest.mark.parametrize("writable", [False, True])
def test_some_other_file(tmp_path: Path, content: bytes, writable: bool) -> None:
    path = tmp_path / "db"
    path.write_bytes(content)
    with pytest.raises(CorruptDatabaseError, match="invalid database, both meta pages are unusable"):
        Db.open(path, writable=writable)
    assert path.read_bytes() == content
    assert len(check(path).findings) == 1


def test_a_refused_file_is_closed_and_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"x" * 5000)
    before = len(os.listdir("/proc/self/fd"))
    for writable in (False, True):
        with pytest.raises(CorruptDatabaseError):
            Db.open(path, writable=writable)
    assert len(os.listdir("/proc/self/fd")) == before


# -- empty and new files


def test_a_file_of_0_bytes_is_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    with Db.open(path) as db:
        with db.view() as tx:
            assert tx.bucket(b"b") is None
            assert list(tx.root.items()) == []
            assert tx.root.cursor().last() is None
            assert tx.root.get(b"k") is None
        assert list(dump(db)) == []
    assert check(path).clean
    with Db.open(path, writable=True) as db, db.view() as tx:
        assert list(tx.root.items()) == []
    assert path.stat().st_size == 0
    with Db.open(path, writable=True) as db, db.update() as tx:
        tx.create_path(b"b").put(b"k", b"v")
    assert_holds(path, Model(0, {b"b": Model(0, {b"k": b"v"})}))


def test_the_first_write_transaction_initialises_a_file(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with Db.open(path, writable=True, create=True, page_size=1024) as db:
        assert path.stat().st_size == 0
        with db.update() as tx:
            assert tx.page_size == 1024
        assert path.stat().st_size == 4096
        with db.view() as tx:
            assert list(tx.root.items()) == []
    assert_holds(path, Model())


def test_a_file_that_cannot_be_initialised_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the first pages would be a damaged database."""
    path = tmp_path / "db"
    real = os.pwritev

    def half(fd: int, buffers: list[bytes], offset: int) -> int:
        real(fd, [b"".join(buffers)[:100]], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Db.open(path, writable=True, create=True) as db:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", half)
            with pytest.raises(DatabaseError, match="No space left on device"), db.update():
                pass
        assert path.stat().st_size == 0
        with db.update() as tx:
            tx.create_bucket(b"b")
    assert_holds(path, Model(0, {b"b": Model()}))


@pytest.mark.parametrize("page_size", [1024 << i for i in range(11)])
def test_page_sizes(tmp_path: Path, page_size: int) -> None:
    path = new_db(tmp_path / "db", page_size)
    assert path.stat().st_size == 4 * page_size
    assert_holds(path, Model())
    with updating(path) as tx:
        tx.create_path(b"b").put(b"k", b"v" * page_size)
    assert_holds(path, Model(0, {b"b": Model(0, {b"k": b"v" * page_size})}))
    with Db.open(path, writable=True, page_size=4096) as db:
        assert db.pages is not None
        assert db.pages.page_size == page_size  # that of the file counts


@pytest.mark.parametrize("page_size", [0, 512, 1000, 4095, 1 << 25])
def test_bad_page_sizes_are_refused(tmp_path: Path, page_size: int) -> None:
    with pytest.raises(BucketError, match=f"page size {page_size} is not a power of two"):
        Db.open(tmp_path / "db", writable=True, create=True, page_size=page_size)


def test_a_created_file_is_private(tmp_path: Path) -> None:
    assert new_db(tmp_path / "db").stat().st_mode & 0o777 == 0o600


# -- closed and read-only databases


def test_a_closed_database(path: Path) -> None:
    db = Db.open(path, writable=True)
    db.close()
    db.close()
    for begin in (db.view, db.update):
        with pytest.raises(BucketError, match="the database is closed"), begin():
            pass


def test_writing_to_a_database_opened_for_reading(path: Path) -> None:
    with Db.open(path) as db, pytest.raises(BucketError, match="opened for reading only"), db.update():
        pass


# -- meta pages


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("damage", ["checksum", "zeros", "ones"])
def test_one_bad_meta_page(tmp_path: Path, page_size: int, bad: int, damage: str) -> None:
    """The other one counts, wherever it is: the state before the last commit, or the last one."""
    path = new_db(tmp_path / "db", page_size)
    states = [Model()]
    for i in range(2):
        with updating(path) as tx:
            tx.create_path(b"b").put(b"%d" % i, b"v")
        states.append(contents(path))
    newest = read_meta(path).txid % 2
    data = bytearray(path.read_bytes())
    if damage == "checksum":
        data[bad * page_size + PAGE_HEADER_SIZE + 50] ^= 1
    else:
        data[bad * page_size : (bad + 1) * page_size] = (b"\0" if damage == "zeros" else b"\xff") * page_size
    path.write_bytes(data)
    expected = states[1] if bad == newest else states[2]
    assert contents(path) == expected
    assert_sound(path)
    with updating(path) as tx:
        tx.create_path(b"b").put(b"more", b"v")
    expected.create((b"b",)).entries[b"more"] = b"v"
    assert_holds(path, expected)


def test_both_meta_pages_bad(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for slot in (0, 1):
        data[slot * 4096 + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptDatabaseError, match="both meta pages are unusable"):
        Db.open(path)


def test_a_file_longer_than_its_high_water_mark(path: Path) -> None:
    """bbolt grows files in steps of 16 MB."""
    fill(path, 100)
    with open(path, "ab") as file:
        file.write(b"\xff" * 100_001)
    size = path.stat().st_size
    assert_sound(path)
    model = contents(path)
    fill(path, 500, name=b"c")
    model.entries[b"c"] = Model(0, {b"k%05d" % i: b"v" * 40 for i in range(500)})
    assert_holds(path, model)
    assert path.stat().st_size == size


# -- the freelist


@pytest.mark.parametrize("freelist", [True, False])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_stored_and_absent_freelists(tmp_path: Path, page_size: int, freelist: bool) -> None:
    path = new_db(tmp_path / "db", page_size, freelist=freelist)
    model = Model()
    for round_ in range(6):
        with Db.open(path, writable=True) as db:
            for _ in range(2):
                with db.update() as tx:
                    for i in range(round_, 300, 3):
                        tx.create_path(b"b").put(b"%d" % i, b"v" * 50 * round_)
                        model.create((b"b",)).entries[b"%d" % i] = b"v" * 50 * round_
        assert_holds(path, model)
        assert (read_meta(path).freelist == NO_FREELIST) == (not freelist)
    assert check(path).free_pages > 0
    assert read_meta(path).high_water_mark < 10 + 3 * (6 * 50 * 300 * 2 // page_size + 2)  # pages are used again


def test_dropping_the_stored_freelist_loses_nothing(path: Path) -> None:
    """As opening with NoFreelistSync does: what is free is what nothing refers to."""
    fill(path, 3000)
    with updating(path) as tx:
        for i in range(0, 2000):
            open_bucket(tx, b"b").delete(b"k%05d" % i)
    stored = check(path).free_pages
    patch_metas(path, freelist=NO_FREELIST)
    assert check(path).free_pages == stored + 1  # the page it stood on
    assert_sound(path)


@pytest.mark.parametrize("count", [65530, 65535, 140_000])
def test_a_freelist_of_more_than_65534_pages(tmp_path: Path, count: int) -> None:
    """The count of the page has 16 bits; 0xFFFF there says that the first number is the count."""
    path = new_db(tmp_path / "db", 1024)
    with Db.open(path, writable=True) as db:
        with db.update() as tx:
            tx.create_path(b"big").put(b"k", b"v" * (1024 * (count - 1) - 200))
        with db.update() as tx:
            tx.delete_bucket(b"big")
    for _ in range(3):
        with updating(path) as tx:
            bucket = tx.create_path(b"b")
            bucket.put(b"%d" % bucket.next_sequence(), b"v")
        assert_sound(path)
    with open(path, "rb") as file:
        pages = PageFile(file.fileno(), str(path))
        page = pages.page(pages.meta.freelist)
        free = pages.freelist()
    assert free is not None
    assert abs(len(free) - count) < 10 + count // 128 * 3  # the list itself moves about
    assert page.flags == FREELIST
    assert page.count == min(len(free), 0xFFFF)
    if len(free) >= 0xFFFF:
        assert int.from_bytes(page.image[PAGE_HEADER_SIZE : PAGE_HEADER_SIZE + 8], "little") == len(free)
    assert contents(path) == Model(0, {b"b": Model(3, {b"1": b"v", b"2": b"v", b"3": b"v"})})


def test_a_freelist_at_the_edge_of_its_16_bits() -> None:
    """Exactly 65534 and 65535 pages."""
    for count in (0, 1, 0xFFFE, 0xFFFF, 0x10000):
        ids = list(range(2, count + 2))
        stated, payload = encode_freelist(ids)
        assert stated == min(count, 0xFFFF)
        image = PAGE_HEADER.pack(5, FREELIST, stated, 0) + payload
        assert len(image) <= freelist_pages(count, 4096) * 4096
        assert decode_freelist(Page(5, FREELIST, stated, 0, image), count + 2) == ids


# -- commits that fail


class Failing:
    """Makes one system call fail, from the n-th time on (0: never), or only then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, at: int, code: int, *, once: bool = False) -> None:
        self.count = 0
        real = getattr(os, call)

        def wrapper(*args: object) -> object:
            self.count += 1
            if self.count == at or (at and self.count > at and not once):
                raise OSError(code, os.strerror(code))
            return real(*args)

        monkeypatch.setattr(os, call, wrapper)


def change(path_or_db: Path | Db) -> None:
    db = Db.open(path_or_db, writable=True) if isinstance(path_or_db, Path) else path_or_db
    try:
        with db.update() as tx:
            for i in range(3000):
                tx.create_path(b"c").put(b"%05d" % i, b"w" * 50)
            tx.delete_bucket(b"b")
    finally:
        if isinstance(path_or_db, Path):
            db.close()


BEFORE_META = [
    ("pwritev", 1, errno.ENOSPC),
    ("pwritev", 2, errno.EIO),
    ("ftruncate", 1, errno.ENOSPC),
    ("fdatasync", 1, errno.EIO),
]


@pytest.mark.parametrize(("call", "at", "code"), BEFORE_META)
def test_a_commit_that_fails_before_the_meta_page(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int, code: int
) -> None:
    """The old state stands, in the file and in the object, which can be used further."""
    fill(path, 3000)
    fill(path, 500, name=b"free")
    with updating(path) as tx:
        tx.delete_bucket(b"free")
    model, size = contents(path), path.stat().st_size
    with Db.open(path, writable=True) as db:
        with monkeypatch.context() as patch:
            # The pages are written past the end of the file, so ftruncate has nothing to do unless they are not.
            if call == "ftruncate":
                patch.setattr(os, "fstat", lambda fd: os.stat_result((0,) * 10))
            Failing(patch, call, at, code)
            with pytest.raises(DatabaseError, match=os.strerror(code)) as caught:
                change(db)
            assert not isinstance(caught.value, UncertainCommitError)
        with db.view() as tx:
            assert len(list(open_bucket(tx, b"b").items())) == 3000
        if call != "ftruncate":
            assert path.stat().st_size == size  # what was written behind the committed pages is given back
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        assert_holds(copy, model)
        # What the failed transaction would have freed is still in use.
        with db.update() as tx:
            for i in range(1000):
                tx.create_path(b"d").put(b"%05d" % i, b"x" * 50)
    model.entries[b"d"] = Model(0, {b"%05d" % i: b"x" * 50 for i in range(1000)})
    assert_holds(path, model)


@pytest.mark.parametrize("call", ["pwritev", "fdatasync", "reload"])
def test_a_commit_that_fails_at_the_meta_page(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Either state may be the committed one now; the object refuses to go on."""
    fill(path, 3000)
    old = contents(path)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    with monkeypatch.context() as patch:
        counter = Failing(patch, call if call != "reload" else "pwritev", 0, 0)
        change(copy)
    new = contents(copy)

    def no_reload(_: Db) -> None:
        raise DatabaseError(path, "Input/output error")

    with Db.open(path, writable=True) as db:
        with monkeypatch.context() as patch:
            if call == "reload":
                patch.setattr(Db, "reload", no_reload)
            else:
                Failing(patch, call, counter.count, errno.EIO)
            with pytest.raises(UncertainCommitError, match="Input/output error"):
                change(db)
        for begin in (db.view, db.update):
            with pytest.raises(DatabaseError, match="an earlier commit failed half-way; open the file again"), begin():
                pass
    assert contents(path) == (old if call == "pwritev" else new)
    assert_sound(path)


def test_short_writes_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwritev, real_pwrite = os.pwritev, os.pwrite
    rng = random.Random(1)

    def short_pwritev(fd: int, buffers: list[bytes], offset: int) -> int:
        data = b"".join(buffers)
        return real_pwritev(fd, [data[: rng.randrange(1, len(data) + 1)]], offset)

    def short_pwrite(fd: int, data: bytes, offset: int) -> int:
        return real_pwrite(fd, data[: rng.randrange(1, len(data) + 1)], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", short_pwritev)
        patch.setattr(os, "pwrite", short_pwrite)
        fill(path, 3000)
    assert_holds(path, Model(0, {b"b": Model(0, {b"k%05d" % i: b"v" * 40 for i in range(3000)})}))


def test_a_read_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, 3000)
    with viewing(path) as tx, monkeypatch.context() as patch:
        Failing(patch, "pread", 1, errno.EIO)
        with pytest.raises(DatabaseError, match=r"cannot read 4096 bytes at \d+: Input/output error") as caught:
            list(open_bucket(tx, b"b").items())
        assert not isinstance(caught.value, CorruptDatabaseError)


def test_a_full_disk_for_real(path: Path) -> None:
    """RLIMIT_FSIZE makes writes fail as a full disk does, in a process of its own."""
    fill(path, 1000)
    model = contents(path)
    script = """
import resource, signal, sys
from asyncmig.bolt import Db
from asyncmig.errors import DatabaseError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Db.open(sys.argv[1], writable=True) as db:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        with db.update() as tx:
            for i in range(20000):
                tx.create_path(b"c").put(b"%05d" % i, b"w" * 50)
    except DatabaseError as error:
        print(error.cause)
    with db.update() as tx:
        tx.bucket(b"b").put(b"k", b"v")
"""
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot write" in result.stdout
    model.create((b"b",)).entries[b"k"] = b"v"
    assert_holds(path, model)


def test_a_checkpoint_can_stop_what_takes_long(path: Path) -> None:
    fill(path, 3000)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt

    stoppable: list[Callable[[], object]] = [lambda: check(path, checkpoint=stop), lambda: dump_all(path, stop)]
    for call in stoppable:
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            call()
        assert calls == 10


def dump_all(path: Path, checkpoint: Callable[[], None]) -> None:
    with Db.open(path) as db:
        list(dump(db, checkpoint))
