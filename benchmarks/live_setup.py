"""A synthetic v1 cache in a containerd of its own, for the live benchmarks."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncmig.bolt import Db, dump
from asyncmig.synth import synthesize
from tests.interop.containerd import Containerd
from tests.interop.livecache import containerd_root_from_worker

SNAPSHOTTER = "overlayfs"
MIGRATE = "anyio.run(asyncmig.migrate, worker, options, backend=backend)"
"""The work of a process of its own (:mod:`benchmarks.child`), which sets these names up."""


@dataclass(frozen=True)
class Prepared:
    """A worker directory and the root of the containerd that has its stores; to be copied, not used."""

    worker: Path
    root: Path

    @classmethod
    def make(cls, directory: Path, records: int) -> Prepared:
        """Make them below ``directory``."""
        made = Path(synthesize(directory / f"runc-{SNAPSHOTTER}", records=records, bare=True).directory)
        root = containerd_root_from_worker(made, directory / "root", SNAPSHOTTER)
        return cls(made.rename(directory / f"containerd-{SNAPSHOTTER}"), root)

    @contextmanager
    def copied(self, directory: Path) -> Iterator[tuple[Path, Path]]:
        """A fresh copy of both in ``directory``, gone at the end."""
        try:
            worker = Path(shutil.copytree(self.worker, directory / self.worker.name))
            yield worker, Path(shutil.copytree(self.root, directory / "root"))
        finally:
            shutil.rmtree(directory)

    @contextmanager
    def running(self, directory: Path) -> Iterator[tuple[Path, Containerd]]:
        """A fresh copy in ``directory`` with its containerd running; gone at the end."""
        with self.copied(directory) as (worker, root), Containerd(directory, root=root, automatic_gc=False) as daemon:
            yield worker, daemon


def state_of(root: Path) -> str:
    """A digest of all that the databases of a stopped containerd say, but for the times at which they were told it."""
    digest = hashlib.sha256()
    for name in ("io.containerd.metadata.v1.bolt/meta.db", f"io.containerd.snapshotter.v1.{SNAPSHOTTER}/metadata.db"):
        with Db.open(str(root / name)) as database:
            for line in dump(database):
                if not any(f'"k":"{key}"' in line for key in ("createdat", "updatedat")):
                    digest.update(line.encode())
    return digest.hexdigest()
