"""Power cuts of a live migration: what containerd has answered is durable, the files beside it are what the disk holds.

With the fake containerd: what counts here is the order of calls and syncs.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio

import asyncmig
from asyncmig import Options, Outcome, Report
from asyncmig.migration.semantics import SEMANTICS
from asyncmig.stores.memory import MemoryStores
from tests.caches import ROOT, final_state, labels_of, marked_cache, original_state
from tests.faults.states import owned_in_sample
from tests.stores.containerd.fake import FakeContainerd
from tests.torture.campaign import Campaign, Case
from tests.torture.disk import Cut, State, recording, write_state

SCENARIOS = [(semantics, verb) for semantics in ("hardened", "upstream") for verb in ("migrate", "rollback")]
CONCURRENCY = 3


class LiveCrashes:
    """The power cuts of one verb."""

    def __init__(self, semantics: str, verb: str, directory: Path) -> None:
        self.name = f"{semantics}/{verb}"
        self._semantics = semantics
        self._address = directory / "containerd.sock"
        self._worker = directory / "containerd-overlayfs"
        self._moments: list[tuple[int, MemoryStores]] = []
        """Events passed, and what containerd had then: before each call, and at the end."""
        state, before = self._original()
        self._expected = {"migrate": final_state, "rollback": original_state}
        self._run("migrate", state)
        self._ends = {"migrate": final_state(state, self._worker), "rollback": before}
        if verb == "migrate":
            state, _ = self._original()
        with recording(self._worker) as self.record:
            self._run(verb, state, watch=True)
        self._moments.append((len(self.record.events), state))

    def _original(self) -> tuple[MemoryStores, object]:
        """Lay the v1 cache out; what containerd has, and what a rollback must bring back."""
        shutil.rmtree(self._worker, ignore_errors=True)
        self._worker.mkdir(parents=True)
        marked_cache().write_metadata(self._worker / "metadata.db")
        state = marked_cache().in_memory()
        return state, original_state(state, self._worker)

    def _write(self, state: State) -> None:
        shutil.rmtree(self._worker, ignore_errors=True)
        write_state(state, self._worker)

    def _run(self, verb: str, state: MemoryStores, *, watch: bool = False, backend: str = "asyncio") -> Report:
        async def note(_name: str, _request: Any) -> None:
            self._moments.append((len(self.record.events), copy.deepcopy(state)))

        options = Options(address=str(self._address), semantics=SEMANTICS[self._semantics].name, concurrency=CONCURRENCY)
        with FakeContainerd(self._address, state) as fake:
            if watch:
                fake.before = note
            report: Report = anyio.run(getattr(asyncmig, verb), self._worker, options, backend=backend)
            return report

    def states(self, seed: int, count: int) -> Iterator[tuple[str, State, MemoryStores]]:
        """As many states, all moments in turn."""
        for i in range(count):
            at, stores = self._moments[(i * 7 + seed) % len(self._moments)]
            rng = random.Random(f"{seed} {self.name} {i}")
            yield f"{at}/{i}", Cut(self.record, at).random_state(rng), stores

    def survives(self, name: str, state: State, stores: MemoryStores) -> None:
        """Raise ``AssertionError`` unless all is protected, and another run gets from there to where it should."""
        rng = random.Random(f"{self.name} {name}")
        then, backend = rng.choice(["migrate", "rollback"]), rng.choice(["asyncio", "trio"])
        stores = copy.deepcopy(stores)
        self._write(state)
        self._check_protection(stores)
        (self._migrate if then == "migrate" else self._roll_back)(stores, backend)
        (self._worker / "metadata_v2.db.rolled-back").unlink(missing_ok=True)
        assert self._expected[then](stores, self._worker) == self._ends[then], f"another state after {then}"

    def _migrate(self, stores: MemoryStores, backend: str) -> None:
        report = self._run("migrate", stores, backend=backend)
        if report.outcome is Outcome.ROLLBACK_INTERRUPTED:
            self._roll_back(stores, backend)
            self._migrate(stores, backend)

    def _roll_back(self, stores: MemoryStores, backend: str) -> None:
        if (self._worker / "metadata_v2.db.journal").exists():
            self._run("rollback", stores, backend=backend)
        for name in ("metadata_v2.db.tmp", "metadata_v2.db.journal.tmp"):
            # Left over by a migration that had not begun to change anything; the next one replaces them.
            (self._worker / name).unlink(missing_ok=True)

    def _check_protection(self, stores: MemoryStores) -> None:
        held = {resource.id for lease in stores.leases.values() for resource in lease.resources}
        rooted = {key for key, labels in labels_of(stores).items() if ROOT in labels}
        lost = owned_in_sample(self._semantics) - rooted - held
        assert not lost, f"neither labelled nor leased: {lost}"
        if self._semantics == "hardened" and not (self._worker / "metadata_v2.db").exists():
            unlabelled = owned_in_sample(self._semantics) - rooted
            assert not unlabelled, f"no label and no new database: {unlabelled}"


class LiveCrashCampaign(Campaign):
    """Some of the states that a power cut may leave of a live migration and its rollback."""

    name = "crash-live"
    unit = "states"
    full = 2_000
    few = 80

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """See :class:`Campaign`."""
        for semantics, verb in SCENARIOS:
            crashes = LiveCrashes(semantics, verb, directory / f"{semantics}-{verb}")
            for name, state, stores in crashes.states(seed, max(1, count // len(SCENARIOS))):
                yield Case(f"{crashes.name}/{name}", partial(crashes.survives, name, state, stores))
