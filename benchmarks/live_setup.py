"""A synthetic v1 cache in a containerd of its own, for the live benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncmig.synth import synthesize
from tests.interop.containerd import Containerd

SNAPSHOTTER = "overlayfs"
PLACES = {
    "containerdmeta.db": "io.containerd.metadata.v1.bolt/meta.db",
    "content": "io.containerd.content.v1.content",
    "snapshots": f"io.containerd.snapshotter.v1.{SNAPSHOTTER}",
}
"""Where a containerd keeps what an OCI worker keeps in its own directory; the files are the same."""


@dataclass(frozen=True)
class Prepared:
    """A worker directory and the root of the containerd that has its stores; to be copied, not used."""

    worker: Path
    root: Path

    @classmethod
    def make(cls, directory: Path, records: int) -> Prepared:
        """Make them below ``directory``."""
        made = Path(synthesize(directory / f"runc-{SNAPSHOTTER}", records=records, bare=True).directory)
        root = directory / "root"
        for source, target in PLACES.items():
            if (made / source).exists():
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(made / source, root / target)
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
