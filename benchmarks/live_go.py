"""Containerd's own client in Go (``baseline/live``), making the calls of a live migration.

It makes them at the same concurrency on a fresh copy of the same stores, and must leave the same state in containerd's
databases.  It reads no metadata.db and builds no new one, which the migration does in the same time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks import child
from benchmarks.baseline import BaselineError, program
from benchmarks.baseline.recording import GoRun, replay
from benchmarks.live_setup import MIGRATE, Prepared, state_of
from tests.interop.containerd import Containerd

RECORD_CALLS = """
from benchmarks.baseline.recording import Recorder
recorder = Recorder()
recorder.install()
worker, address, calls = sys.argv[1:]
backend = "asyncio"
options = asyncmig.Options(semantics="upstream", address=address)
"""


@dataclass(frozen=True)
class GoClient:
    """The program, the calls it is to make, and what must then be in containerd's databases."""

    program: Path
    calls: Path
    state: str

    @classmethod
    def record(cls, prepared: Prepared, directory: Path, calls: Path) -> GoClient:
        """Note the calls of a migration.  That takes memory and time, so it is a run of its own."""
        client = program("live")
        with prepared.copied(directory) as (worker, root):
            with Containerd(directory, root=root, automatic_gc=False) as daemon:
                work = f"{MIGRATE}; recorder.write(calls)"
                child.run(work, str(worker), str(daemon.address), str(calls), setup=RECORD_CALLS)
            return cls(client, calls, state_of(root))

    def run(self, prepared: Prepared, directory: Path, concurrency: int) -> GoRun:
        """Make the calls on a fresh copy."""
        with prepared.copied(directory) as (_, root):
            with Containerd(directory, root=root, automatic_gc=False) as daemon:
                os.sync()
                run = replay(self.program, self.calls, str(daemon.address), concurrency)
            if state_of(root) != self.state:
                raise BaselineError("the Go client has left another state than the migration")
        return run
