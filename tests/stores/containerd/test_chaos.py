"""Random trouble at random calls, and a process that vanishes at any call: the final state is always the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import asyncmig
from asyncmig import AsyncmigError, Options
from asyncmig.migration.semantics import HARDENED, UPSTREAM, Semantics
from asyncmig.stores.memory import MemoryStores
from tests.caches import V1Cache, final_state, marked_cache, migrate_with, original_state
from tests.clock import SAFETY
from tests.stores.containerd.fake import Drop, FakeContainerd

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache() -> V1Cache:
    return marked_cache()


@pytest.fixture
def expected(semantics: Semantics, tmp_path: Path) -> object:
    """The final state of an uninterrupted migration."""
    worker = write(tmp_path / "uninterrupted")
    state = marked_cache().in_memory()
    anyio.run(lambda: migrate_with(worker, state.stores(), semantics=semantics))
    return final_state(state, worker)


def write(directory: Path) -> Path:
    directory.mkdir(parents=True)
    marked_cache().write_metadata(directory / "metadata.db")
    return directory


class Chaos:
    """Trouble at one call in ten, of each kind that a retry must bear."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.trouble = 0

    async def __call__(self, name: str, request: Any) -> None:
        if name == "Version/Version" or self._random.random() > 0.1:
            return  # the first call of all is not made again: the address may be wrong
        self.trouble += 1
        raise self._random.choice([Drop(), Drop(), GRPCError(Status.UNAVAILABLE, "going down")])


SEEDS = [(HARDENED, seed) for seed in range(15)] + [(UPSTREAM, seed) for seed in range(5)]


@pytest.mark.parametrize(("semantics", "seed"), SEEDS, ids=lambda value: getattr(value, "name", str(value)))
async def test_random_trouble_before_and_after_calls(
    semantics: Semantics, seed: int, fake: FakeContainerd, worker: Path, expected: object
) -> None:
    chaos = Chaos(seed)
    fake.before = fake.after = chaos
    options = Options(address=str(fake.address), concurrency=1 + seed % 8, semantics=semantics.name)
    report = await asyncmig.migrate(worker, options)
    assert chaos.trouble > 0
    assert final_state(fake.state, worker) == expected
    created = 5 if semantics is HARDENED else 7
    assert (report.counts.leases_created, report.counts.leases_existing) == (created, 1)


@pytest.mark.parametrize("seed", range(5))
async def test_random_trouble_in_a_rollback(seed: int, semantics: Semantics, fake: FakeContainerd, worker: Path) -> None:
    before = original_state(fake.state, worker)
    options = Options(address=str(fake.address), concurrency=1 + seed % 8, semantics=semantics.name)
    await asyncmig.migrate(worker, options)
    assert original_state(fake.state, worker) != before
    chaos = Chaos(seed)
    fake.before = fake.after = chaos
    await asyncmig.rollback(worker, options)
    assert chaos.trouble > 0
    assert original_state(fake.state, worker) == before


# -- a process that vanishes

PROGRAM = """
import anyio, asyncmig, sys
verb, worker, address, semantics, backend = sys.argv[1:]
options = asyncmig.Options(address=address, semantics=semantics, concurrency=1)
anyio.run(getattr(asyncmig, verb), worker, options, backend=backend)
"""


class KillAt:
    """Kills a process at the n-th call, before it or after it has taken effect."""

    def __init__(self, fake: FakeContainerd, point: int) -> None:
        self._fake = fake
        self._point = point
        self.pid = 0
        fake.calls.clear()
        fake.before = lambda name, request: self._at(False)
        fake.after = lambda name, request: self._at(True)

    async def _at(self, after: bool) -> None:
        if self.pid and self._fake.calls.total() == self._point // 2 + 1 and after == bool(self._point % 2):
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
            raise Drop


def state_after_a_kill(
    killed: str, then: str, point: int, directory: Path, semantics: Semantics, backend: str
) -> tuple[MemoryStores, Path] | None:
    """Kill a run at ``point`` and let another follow; what that has left, ``None`` if there is no such point."""
    worker = write(directory / "containerd-overlayfs")
    address = Path(f"/tmp/asyncmig-{os.getpid()}.sock")

    def run(verb: str) -> None:
        anyio.run(getattr(asyncmig, verb), worker, Options(address=str(address), semantics=semantics.name), backend=backend)

    with FakeContainerd(address, marked_cache().in_memory()) as fake:
        if killed == "rollback":
            run("migrate")
        at = KillAt(fake, point)
        command = [sys.executable, "-c", PROGRAM, killed, str(worker), str(address), semantics.name, backend]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            at.pid = process.pid
            code = process.wait(SAFETY)
        at.pid = 0
        assert code in (0, -signal.SIGKILL)
        if fake.calls.total() <= point // 2:
            return None
        if then == "migrate" or (worker / "metadata_v2.db.journal").exists():
            run(then)
        else:  # killed before it has changed anything, or after everything
            with pytest.raises(AsyncmigError, match=r"there is no metadata_v2\.db\.journal"):
                run(then)
    return fake.state, worker


THIRDS = [(HARDENED, start) for start in range(3)] + [(UPSTREAM, 0)]


@pytest.mark.parametrize(("semantics", "start"), THIRDS, ids=lambda value: getattr(value, "name", str(value)))
def test_a_rerun_after_a_kill_at_any_call(
    semantics: Semantics, start: int, memory_path: Path, expected: object, anyio_backend: str
) -> None:
    """A third of all points each; under trio a third of those, to spare time."""
    tried, every = 0, 9 if anyio_backend == "trio" else 3
    for point in range(start, 1000, every):
        left = state_after_a_kill("migrate", "migrate", point, memory_path / f"{point}", semantics, anyio_backend)
        if left is None:
            break
        assert final_state(*left) == expected, f"point {point}"
        tried += 1
    assert tried >= 75 // every, "points tried"


@pytest.mark.parametrize(("killed", "step", "at_least"), [("migrate", 5, 15), ("rollback", 2, 20)])
def test_a_rollback_after_a_kill_at_any_call(
    killed: str, step: int, at_least: int, memory_path: Path, anyio_backend: str
) -> None:
    """A part of all points; the offline suite has them all."""
    expected = original_state(marked_cache().in_memory(), write(memory_path / "original"))
    tried = 0
    for point in range(anyio_backend == "trio", 1000, step):
        left = state_after_a_kill(killed, "rollback", point, memory_path / f"{point}", HARDENED, anyio_backend)
        if left is None:
            break
        assert original_state(*left) == expected, f"point {point}"
        tried += 1
    assert tried >= at_least, "points tried"
