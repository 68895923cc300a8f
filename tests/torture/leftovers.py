"""What a run must not leave behind in the process."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clock import SAFETY

_IDLE = ("AnyIO worker thread", "Trio thread")
"""Threads of the libraries' pools; whether they are at work, others count."""


@contextmanager
def nothing_left() -> Iterator[None]:
    """Files, sockets, threads and settings of the process are as before the block, and nobody complains of lost errors."""
    before = _files(), _threads(), gc.get_threshold()
    complaints: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, complaints.append
    try:
        yield
        _settle(before[0], before[1])
        gc.collect(1)
    finally:
        sys.unraisablehook = hook
    assert not complaints, [(c.exc_value, c.object) for c in complaints]
    assert _files() == before[0], f"left open: {_files() - before[0]}, closed: {before[0] - _files()}"
    assert _threads() <= before[1], f"threads are left: {_threads() - before[1]}"
    assert gc.get_threshold() == before[2]


def _settle(files: Counter[str], threads: set[threading.Thread]) -> None:
    """A thread that has ended may still be about to vanish."""
    deadline = time.monotonic() + SAFETY
    while (_files() != files or not _threads() <= threads) and time.monotonic() < deadline:
        time.sleep(0.005)


def _files() -> Counter[str]:
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{fd}")] += 1
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(_IDLE)}


def check_unlocked(paths: Iterable[Path]) -> None:
    """Whoever comes now gets every lock."""
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
