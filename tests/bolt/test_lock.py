"""Locks: flock, as bbolt takes it."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncmig.bolt import Db, check
from asyncmig.bolt import lock as lock_module
from asyncmig.errors import BucketError, DatabaseError, DatabaseLockedError
from tests.bolt.helpers import new_db

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "rb+")
fcntl.flock(file, fcntl.LOCK_EX if sys.argv[2] == "exclusive" else fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db")


@contextmanager
def held_by_a_process(path: Path, kind: str) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.communicate()


@contextmanager
def held_by_a_descriptor(path: Path, kind: str) -> Iterator[None]:
    with open(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX if kind == "exclusive" else fcntl.LOCK_SH)
        yield


@pytest.mark.parametrize("holder", [held_by_a_process, held_by_a_descriptor])
@pytest.mark.parametrize(
    ("held", "writable", "refused"),
    [("shared", False, False), ("shared", True, True), ("exclusive", False, True), ("exclusive", True, True)],
)
def test_a_file_that_somebody_else_has_locked(path: Path, holder: object, held: str, writable: bool, refused: bool) -> None:
    assert callable(holder)
    with holder(path, held):
        if refused:
            with pytest.raises(DatabaseLockedError, match=r"db: locked by \w+ \(pid \d+\); stop the daemon that uses it"):
                Db.open(path, writable=writable)
        else:
            Db.open(path, writable=writable).close()
    Db.open(path, writable=writable).close()


@pytest.mark.parametrize("writable", [False, True])
def test_the_lock_we_hold(path: Path, writable: bool) -> None:
    with Db.open(path, writable=writable):
        for kind, allowed in [(fcntl.LOCK_SH, not writable), (fcntl.LOCK_EX, False)]:
            with open(path, "rb+") as file:
                if allowed:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                else:
                    with pytest.raises(BlockingIOError):
                        fcntl.flock(file, kind | fcntl.LOCK_NB)
    with open(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_two_databases_in_one_process(path: Path) -> None:
    with Db.open(path), Db.open(path):
        with pytest.raises(DatabaseLockedError):
            Db.open(path, writable=True)
        assert check(path).clean
    with Db.open(path, writable=True):
        for writable in (False, True):
            with pytest.raises(DatabaseLockedError):
                Db.open(path, writable=writable)
        with pytest.raises(DatabaseLockedError):
            check(path)


def test_reading_under_an_exclusive_lock(path: Path) -> None:
    with Db.open(path, exclusive=True) as db:
        for writable in (False, True):
            with pytest.raises(DatabaseLockedError):
                Db.open(path, writable=writable)
        with pytest.raises(BucketError, match="opened for reading only"), db.update():
            pass
    with Db.open(path), pytest.raises(DatabaseLockedError):
        Db.open(path, exclusive=True)


def test_the_lock_is_not_released_between_transactions(path: Path) -> None:
    with Db.open(path, writable=True) as db:
        for i in range(3):
            with db.update() as tx:
                tx.create_path(b"b").put(b"%d" % i, b"v")
            with pytest.raises(DatabaseLockedError):
                Db.open(path)


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []
        monkeypatch.setattr(lock_module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_timeout(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    with Db.open(path, writable=True):
        with pytest.raises(DatabaseLockedError):
            Db.open(path)
        assert clock.sleeps == []
        with pytest.raises(DatabaseLockedError):
            Db.open(path, lock_timeout=1.0)
        assert sum(clock.sleeps) == pytest.approx(1.0, abs=0.06)
        assert set(clock.sleeps) == {0.05}


def test_waiting_for_a_lock(path: Path) -> None:
    db = Db.open(path, writable=True)
    closing = threading.Timer(0.1, db.close)
    closing.start()
    Db.open(path, lock_timeout=60).close()
    closing.join()


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DatabaseError, match="cannot lock: No locks available") as caught:
        Db.open(path)
    assert not isinstance(caught.value, DatabaseLockedError)
