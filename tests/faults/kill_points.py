"""Kills a run at one system call after the other, lets another run end the matter, and compares the result.

A program of its own, because it forks: ``python -m tests.faults.kill_points DIRECTORY BACKEND SEMANTICS KILLED THEN STEP``.
KILLED and THEN are ``migrate`` or ``rollback``, and each STEP-th point is tried.  The run that ends the matter is itself killed
once before.  Prints the first point that there is not, or says at which one something was wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncmig
from asyncmig import AsyncmigError, Options, Outcome
from asyncmig.migration.semantics import SEMANTICS
from tests.caches import marked_cache
from tests.faults.states import check_protection, migrated_state, original_state
from tests.states import tree_state

WATCHED = ("pwrite", "pwritev", "ftruncate", "fsync", "fdatasync", "rename", "copy_file_range", "unlink", "open", "fchmod")
KILLED = 137


# -- killing


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


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- the runs

Verb = Callable[[Path, str, str], None]


def migrate(worker: Path, backend: str, semantics: str) -> None:
    """Where a rollback stopped before the new database went aside, this must say so and leave all to it."""
    before = tree_state(worker)
    report = anyio.run(asyncmig.migrate, worker, Options(semantics=SEMANTICS[semantics].name), backend=backend)
    if report.outcome is Outcome.ROLLBACK_INTERRUPTED:
        assert tree_state(worker) == before
        rollback(worker, backend, semantics)
        migrate(worker, backend, semantics)


def rollback(worker: Path, backend: str, semantics: str) -> None:
    """Where there is no journal yet, or no longer, there must be nothing to be undone."""
    if (worker / "metadata_v2.db.journal").exists():
        anyio.run(asyncmig.rollback, worker, backend=backend)
    else:
        with pytest.raises(AsyncmigError, match=r"there is no metadata_v2\.db\.journal"):
            anyio.run(asyncmig.rollback, worker, backend=backend)


VERBS: dict[str, Verb] = {"migrate": migrate, "rollback": rollback}


class Points:
    """One scenario in a directory of its own."""

    def __init__(self, directory: Path, backend: str, semantics: str, killed: Verb, then: Verb) -> None:
        self._backend = backend
        self._semantics = semantics
        self._killed = killed
        self._then = then
        self._worker = directory / "runc-overlayfs"
        original = marked_cache().write(directory / "original" / "runc-overlayfs")
        migrated = directory / "migrated" / "runc-overlayfs"
        shutil.copytree(original, migrated)
        self._run(migrate, migrated)
        self._begin = migrated if killed is rollback else original
        self._state = migrated_state if then is migrate else original_state
        self._expected = self._state(migrated if then is migrate else original)

    def _run(self, verb: Verb, worker: Path, point: int = 0) -> bool:
        """Run and perhaps kill it; returns whether it was killed."""

        def work() -> None:
            die_at(point)
            verb(worker, self._backend, self._semantics)

        code = in_child(work)
        assert code in (0, KILLED if point else 0), f"exit code {code}"
        return code == KILLED

    def was_killed(self, point: int) -> bool:
        """Try one point; returns whether there was such a point."""
        worker = self._worker
        shutil.rmtree(worker, ignore_errors=True)
        shutil.copytree(self._begin, worker)
        was_killed = self._run(self._killed, worker, point)
        check_protection(worker, self._semantics)
        self._run(self._then, worker, 1 + point * 7 % 40)
        check_protection(worker, self._semantics)
        self._run(self._then, worker)
        assert self._state(worker) == self._expected, "it ended in another state"
        return was_killed


def main() -> None:
    directory, backend, semantics, killed, then, step = sys.argv[1:]
    points = Points(Path(directory), backend, semantics, VERBS[killed], VERBS[then])
    point = 1
    try:
        while points.was_killed(point):
            point += int(step)
    except AssertionError as error:
        sys.exit(f"point {point}: {error}")
    print(point)


if __name__ == "__main__":
    main()
