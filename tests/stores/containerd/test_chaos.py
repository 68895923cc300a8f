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
from asyncmig import Options
from tests.caches import V1Cache, final_state, migrate_with, sample_cache
from tests.stores.containerd.fake import Drop, FakeContainerd

pytestmark = pytest.mark.anyio


@pytest.fixture
def expected(tmp_path: Path) -> object:
    """The final state of an uninterrupted migration."""
    directory = tmp_path / "uninterrupted"
    directory.mkdir()
    sample_cache().write_metadata(directory / "metadata.db")
    state = sample_cache().in_memory()
    anyio.run(migrate_with, directory, state.stores())
    return final_state(state, directory)


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


@pytest.mark.parametrize("seed", range(15))
async def test_random_trouble_before_and_after_calls(seed: int, fake: FakeContainerd, worker: Path, expected: object) -> None:
    chaos = Chaos(seed)
    fake.before = fake.after = chaos
    report = await asyncmig.migrate(worker, Options(address=str(fake.address), concurrency=1 + seed % 8))
    assert chaos.trouble > 0
    assert final_state(fake.state, worker) == expected
    assert (report.counts.leases_created, report.counts.leases_existing) == (8, 0)


PROGRAM = """
import anyio, asyncmig, sys
worker, address, backend = sys.argv[1:]
anyio.run(asyncmig.migrate, worker, asyncmig.Options(address=address, concurrency=1), backend=backend)
"""


class KillAt:
    """Kills a process at the n-th call, before it or after it has taken effect."""

    def __init__(self, fake: FakeContainerd, point: int) -> None:
        self._fake = fake
        self._point = point
        self.pid = 0
        fake.before = lambda name, request: self._at(False)
        fake.after = lambda name, request: self._at(True)

    async def _at(self, after: bool) -> None:
        if self.pid and self._fake.calls.total() == self._point // 2 + 1 and after == bool(self._point % 2):
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
            raise Drop


@pytest.mark.parametrize("start", range(3))
def test_a_rerun_after_a_kill_at_any_call(start: int, tmp_path: Path, expected: object, anyio_backend: str) -> None:
    """A third of all points each."""
    tried = 0
    for point in range(start, 1000, 3):
        killed, calls = kill_and_run_again(point, tmp_path / f"{point}", expected, anyio_backend)
        tried += killed  # a call that fails has no effect to be killed after
        if calls <= point // 2:
            break
    assert tried >= 25, "points tried"


def kill_and_run_again(point: int, directory: Path, expected: object, backend: str) -> tuple[bool, int]:
    """Kill a migration at ``point`` and complete it; whether it was killed, and how many calls it had made."""
    cache: V1Cache = sample_cache()
    directory.mkdir()
    worker = directory / "containerd-overlayfs"
    worker.mkdir()
    cache.write_metadata(worker / "metadata.db")
    address = Path(f"/tmp/asyncmig-{os.getpid()}.sock")
    with FakeContainerd(address, cache.in_memory()) as fake:
        kill = KillAt(fake, point)
        command = [sys.executable, "-c", PROGRAM, str(worker), str(address), backend]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            kill.pid = process.pid
            code = process.wait(30)
        kill.pid, calls = 0, fake.calls.total()
        anyio.run(asyncmig.migrate, worker, Options(address=str(address)), backend=backend)
        assert final_state(fake.state, worker) == expected, f"point {point}"
    return code == -signal.SIGKILL, calls
