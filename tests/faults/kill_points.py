"""Kills a migration at one system call after the other, runs it again, and compares the result.

A program of its own, because it forks: ``python -m tests.faults.kill_points DIRECTORY BACKEND``.  Prints the number of points
tried, or says at which one the result differed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

import asyncmig
from tests.caches import sample_cache
from tests.states import containerd_state

WATCHED = ("pwrite", "pwritev", "ftruncate", "fsync", "fdatasync", "rename", "copy_file_range", "unlink", "open", "fchmod")
FILES = ("metadata_v2.db", "containerdmeta.db", "snapshots/metadata.db")
KILLED = 137


def die_at(point: int) -> Callable[[], int]:
    """Make the process vanish at the given call of a watched function; returns a counter of the calls."""
    calls = 0

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == point:
                os._exit(KILLED)
            return real(*args, **kwargs)

        setattr(os, name, watched)

    for name in WATCHED:
        watch(name)
    return lambda: calls


def in_child(work: Callable[[], int]) -> int:
    """Run ``work`` in a forked process; returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            code = work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def migrate(worker: Path, backend: str, point: int) -> int:
    die_at(point)
    anyio.run(asyncmig.migrate, worker, backend=backend)
    return 0


def state(worker: Path) -> str:
    return json.dumps([containerd_state(worker / name) for name in FILES])


def main() -> None:
    directory, backend = Path(sys.argv[1]), sys.argv[2]
    expected_worker = sample_cache().write(directory / "expected" / "runc-overlayfs")
    assert in_child(lambda: migrate(expected_worker, backend, 0)) == 0
    expected = state(expected_worker)
    point = 0
    while True:
        point += 1
        worker = directory / "runc-overlayfs"
        shutil.rmtree(worker, ignore_errors=True)
        sample_cache().write(worker)
        code = in_child(lambda point=point, worker=worker: migrate(worker, backend, point))  # type: ignore[misc]
        if code not in (0, KILLED):
            sys.exit(f"point {point}: exit code {code}")
        if in_child(lambda worker=worker: migrate(worker, backend, 0)) != 0:  # type: ignore[misc]
            sys.exit(f"point {point}: the rerun failed")
        if state(worker) != expected:
            sys.exit(f"point {point}: the rerun ended in another state")
        if code == 0:
            break
    print(point - 1)


if __name__ == "__main__":
    main()
