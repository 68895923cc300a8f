"""Cancelling a run at each of its points, by every means.

Before the tail nothing has changed; in the tail it completes.  Either way nothing is left in the process, no lock is held, and
the caller sees its cancellation.
"""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import anyio

import asyncmig
from asyncmig import AsyncmigError, IncompleteMigrationError, Options
from asyncmig.migration.journal import JournalFile
from asyncmig.migration.semantics import SEMANTICS
from asyncmig.stores.memory import MemoryStores
from tests import caches
from tests.caches import marked_cache
from tests.faults import states
from tests.states import tree_state
from tests.stores.containerd.fake import FakeContainerd
from tests.torture import means
from tests.torture.campaign import Campaign, Case
from tests.torture.leftovers import check_unlocked, nothing_left
from tests.torture.means import Means
from tests.torture.points import Kind, Points


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry point and the state in which it begins: ``original``, ``migrated``, or ``published`` with all labels still on.

    ``ends`` in one of these, too.
    """

    name: str
    verb: str
    begins: str
    ends: str
    semantics: str = "hardened"


ENTRIES = [
    Entry("migrate", "migrate", "original", "migrated"),
    Entry("migrate-upstream", "migrate", "original", "migrated", "upstream"),
    Entry("plan", "plan", "original", "original"),
    Entry("verify", "verify", "migrated", "migrated"),
    Entry("rollback", "rollback", "migrated", "original"),
    Entry("complete", "migrate", "published", "migrated"),
]
STATES = sorted({(entry.semantics, state) for entry in ENTRIES for state in (entry.begins, entry.ends)})


# -- caches


class Files:
    """An OCI worker directory.

    ``begin`` brings about the state in which an entry point begins; ``is_unchanged`` compares with that, ``is_complete`` with
    that which it comes to.  ``locks`` are the files that a run locks.
    """

    name = "files"

    def __init__(self, directory: Path) -> None:
        self._worker = directory / "runc-overlayfs"
        self._templates: dict[tuple[str, str], Path] = {}
        self._before: dict[Path, object] = {}
        self._ends: dict[tuple[str, str], object] = {}
        for semantics, state in STATES:
            self._prepare(directory / semantics / state / "runc-overlayfs", semantics, state)

    def _prepare(self, worker: Path, semantics: str, state: str) -> None:
        marked_cache().write(worker)
        _advance(worker, Options(semantics=SEMANTICS[semantics].name), state)
        self._templates[semantics, state] = worker
        self._before[worker] = tree_state(worker)
        self._ends[semantics, state] = self._state(worker, state)

    def _state(self, worker: Path, state: str) -> object:
        return states.original_state(worker) if state == "original" else states.migrated_state(worker)

    def begin(self, entry: Entry) -> None:
        shutil.rmtree(self._worker, ignore_errors=True)
        self._template = self._templates[entry.semantics, entry.begins]
        shutil.copytree(self._template, self._worker)

    def call(self, entry: Entry, points: Points) -> Coroutine[Any, Any, object]:
        options = Options(semantics=SEMANTICS[entry.semantics].name)
        return _call(entry, self._worker, options, points)

    def is_unchanged(self) -> bool:
        return tree_state(self._worker) == self._before[self._template]

    def is_complete(self, entry: Entry) -> bool:
        if entry.ends != "original" and not _has_both(self._worker):
            return False
        return self._state(self._worker, entry.ends) == self._ends[entry.semantics, entry.ends]

    def locks(self) -> list[Path]:
        return [self._worker / name for name in ("metadata.db", "metadata_v2.db", *states.STORES)]


class Running:
    """As :class:`Files`, but the stores are in a containerd that runs; here one that has them in memory."""

    name = "running"

    def __init__(self, directory: Path) -> None:
        self._worker = directory / "containerd-overlayfs"
        self._address = Path(f"/tmp/asyncmig-cancel-{os.getpid()}.sock")  # the name of a socket must be short
        self._templates: dict[tuple[str, str], tuple[Path, MemoryStores]] = {}
        self._ends: dict[tuple[str, str], object] = {}
        for semantics, state in STATES:
            self._prepare(directory / semantics / state / "containerd-overlayfs", semantics, state)

    def _prepare(self, worker: Path, semantics: str, state: str) -> None:
        worker.mkdir(parents=True)
        marked_cache().write_metadata(worker / "metadata.db")
        with FakeContainerd(self._address, marked_cache().in_memory()) as fake:
            _advance(worker, Options(semantics=SEMANTICS[semantics].name, address=str(self._address)), state)
        self._templates[semantics, state] = worker, fake.state
        self._ends[semantics, state] = self._state(worker, fake.state, state)

    def _state(self, worker: Path, state: MemoryStores, kind: str) -> object:
        if kind == "original":
            return caches.original_state(state, worker)
        journal = JournalFile(str(worker / "metadata_v2.db")).read()
        return caches.final_state(state, worker), journal is not None and journal.is_complete

    def begin(self, entry: Entry) -> None:
        shutil.rmtree(self._worker, ignore_errors=True)
        self._template, state = self._templates[entry.semantics, entry.begins]
        shutil.copytree(self._template, self._worker)
        self._state_before, self._stores = state, copy.deepcopy(state)

    async def call(self, entry: Entry, points: Points) -> object:
        """The server lives as long as the call, so that none of its connections is taken for one that was left behind."""
        options = Options(semantics=SEMANTICS[entry.semantics].name, address=str(self._address), concurrency=2)
        return await _call(entry, self._worker, options, points)

    def is_unchanged(self) -> bool:
        stores, before = self._stores, self._state_before
        return tree_state(self._worker) == tree_state(self._template) and stores == before

    def is_complete(self, entry: Entry) -> bool:
        if entry.ends != "original" and not _has_both(self._worker):
            return False
        return self._state(self._worker, self._stores, entry.ends) == self._ends[entry.semantics, entry.ends]

    def server(self) -> FakeContainerd:
        """To be entered around a call."""
        return FakeContainerd(self._address, self._stores)

    def locks(self) -> list[Path]:
        return [self._worker / name for name in ("metadata.db", "metadata_v2.db")]


Place = Files | Running


def _call(entry: Entry, worker: Path, options: Options, points: Points) -> Coroutine[Any, Any, object]:
    result: Coroutine[Any, Any, object] = getattr(asyncmig, entry.verb)(worker, options, progress=points)
    return result


def _has_both(worker: Path) -> bool:
    return (worker / "metadata_v2.db").exists() and (worker / "metadata_v2.db.journal").exists()


def _advance(worker: Path, options: Options, state: str) -> None:
    if state == "migrated":
        anyio.run(asyncmig.migrate, worker, options)
    elif state == "published":
        with mock.patch("asyncmig.migration.pipeline.release", side_effect=AsyncmigError("interrupted")):
            try:
                anyio.run(asyncmig.migrate, worker, options)
            except IncompleteMigrationError:
                return
            raise AssertionError("was to be interrupted")


# -- points


@dataclass(frozen=True, slots=True)
class Scenario:
    """An entry point, a cache and a means."""

    place: Place
    entry: Entry
    means: Means

    @property
    def name(self) -> str:
        return f"{self.place.name}/{self.means.backend}/{self.means.name}/{self.entry.name}"

    def count(self) -> dict[Kind, int]:
        """How many points there are."""
        points = Points(Kind.AWAIT, 0)
        self.place.begin(self.entry)
        self._run(points)
        return points.counts

    def try_point(self, kind: Kind, number: int) -> None:
        """Cancel there, if there is such a point; how many there are is not always the same."""
        points = Points(kind, number, **self.means.options)
        self.place.begin(self.entry)
        with warnings.catch_warnings(), nothing_left():
            if self.means.torn:  # anyio wraps the coroutines of its tasks, some of which never begin
                warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            self._run(points)
            check_unlocked(self.place.locks())
        assert points.is_idle(), "a thread goes on working"
        self._check_state(points)
        if number % 20 == 0 and not self.place.is_complete(self.entry):  # the others are as they were, to the last byte
            self._run(Points(Kind.AWAIT, 0))
            assert self.place.is_complete(self.entry), "a rerun comes to something else"

    def _run(self, points: Points) -> None:
        work = partial(self.place.call, self.entry, points)
        if isinstance(self.place, Running):
            with self.place.server(), points.watching():
                self.means.run(points, work)
        else:
            with points.watching():
                self.means.run(points, work)

    def _check_state(self, points: Points) -> None:
        entry, place = self.entry, self.place
        if not points.in_tail:
            assert points.fired or entry.verb in ("plan", "verify"), "it has done nothing"
            assert place.is_unchanged(), "something has changed before the tail"
            return
        if points.fired and not points.fired_in_tail and not self.means.delay:
            raise AssertionError("cancelled before the tail, it began the tail all the same")
        if not self.means.torn:
            assert place.is_complete(entry), "the tail has not completed"
        elif not place.is_complete(entry):
            self._run(Points(Kind.AWAIT, 0))
            assert place.is_complete(entry), "a rerun has not completed it"


Point = tuple[Scenario, Kind, int]

PLAIN = {"asyncio": means.ASYNCIO[0], "trio": means.TRIO[0]}
"""The means of each backend that is tried at every point; the others, as far as the number of cases reaches."""


class Cancel(Campaign):
    """See the module."""

    name = "cancel"
    unit = "points"
    full = 12_000
    few = 160

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """Every point with the plain means, and some with the others, others with every seed; or some of all."""
        places: list[Place] = [Files(directory / "files"), Running(directory / "running")]
        plain: list[Point] = []
        rest: list[Point] = []
        for place in places:
            for entry in ENTRIES:
                counts = {backend: Scenario(place, entry, first).count() for backend, first in PLAIN.items()}
                for how in means.ALL:
                    points = list(_points(Scenario(place, entry, how), counts[how.backend]))
                    (plain if how is PLAIN[how.backend] else rest).extend(points)
        everything = count > len(plain)
        chosen = plain + _some(rest, seed, count - len(plain)) if everything else _some(plain + rest, seed, count)
        for scenario, kind, number in chosen:
            yield Case(f"{scenario.name}/{kind}-{number}", partial(scenario.try_point, kind, number))


def _points(scenario: Scenario, counts: dict[Kind, int]) -> Iterator[Point]:
    for kind, last in counts.items():
        for number in range(1, last + 1):
            yield scenario, kind, number


def _some(points: list[Point], seed: int, count: int) -> list[Point]:
    step = max(1, len(points) // max(1, count))
    return points[seed % step :: step]
