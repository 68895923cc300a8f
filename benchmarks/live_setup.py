"""A synthetic v1 cache in a containerd of its own, for the live benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncmig.synth import synthesize
from tests.interop.containerd import Containerd
from tests.interop.livecache import containerd_root_from_worker

SNAPSHOTTER = "overlayfs"


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
    def running(self, directory: Path) -> Iterator[tuple[Path, Containerd]]:
        """A fresh copy in ``directory`` with its containerd running; gone at the end."""
        worker = Path(shutil.copytree(self.worker, directory / self.worker.name))
        root = Path(shutil.copytree(self.root, directory / "root"))
        try:
            with Containerd(directory, root=root, automatic_gc=False) as daemon:
                yield worker, daemon
        finally:
            shutil.rmtree(directory)
