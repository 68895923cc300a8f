"""Synthetic v1 caches that are made once and migrated many times."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from asyncmig.synth import synthesize

SNAPSHOTTER = "overlayfs"
DATABASES = ("metadata.db", "containerdmeta.db", "snapshots/metadata.db")
RESULTS = ("metadata_v2.db", "containerdmeta.db", "snapshots/metadata.db")
"""What a migration makes or changes."""


@dataclass(frozen=True)
class PreparedCache:
    """A worker directory, and its three databases as they were made."""

    worker: Path
    pristine: Path

    @classmethod
    def make(cls, directory: Path, records: int) -> PreparedCache:
        """Make a cache below ``directory``."""
        made = synthesize(directory / f"runc-{SNAPSHOTTER}", records=records)
        prepared = cls(Path(made.directory), directory / "pristine")
        copy_databases(prepared.worker, prepared.pristine, DATABASES)
        return prepared

    def restored(self) -> Path:
        """The worker directory as it was made, with nothing left to be written to the disk.

        Blobs are not touched: no migration changes one.
        """
        for made in self.worker.glob("metadata_v2.db*"):
            made.unlink()
        copy_databases(self.pristine, self.worker, DATABASES)
        os.sync()
        return self.worker


@dataclass(frozen=True)
class Caches:
    """The caches of a run, by number of records."""

    scratch: Path
    made: dict[int, PreparedCache] = field(default_factory=dict)

    def of(self, records: int) -> PreparedCache:
        """A cache of that size, made if there is none yet."""
        if records not in self.made:
            self.made[records] = PreparedCache.make(self.scratch / f"cache-{records}", records)
        return self.made[records]


def copy_databases(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy the databases in two directories of the same layout."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).unlink(missing_ok=True)
        shutil.copy2(source / name, target / name)
