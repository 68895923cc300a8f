"""Migrate BuildKit v1 build caches (``metadata.db``) in place to v2, from a command or from asyncio and trio programs.

>>> report = await asyncmig.migrate("/var/lib/buildkit/runc-overlayfs")  # doctest: +SKIP
"""

from asyncmig._version import __version__
from asyncmig.api import Options, migrate
from asyncmig.errors import (
    AsyncmigError,
    BucketError,
    ContainerdError,
    ContainerdUnavailableError,
    CorruptDatabaseError,
    DatabaseError,
    DatabaseLockedError,
    IncompleteMigrationError,
    LayoutError,
    RecordError,
    StoreError,
)
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.report import Counts, Notice, Outcome, Report

__all__ = [
    "AsyncmigError",
    "BucketError",
    "ContainerdError",
    "ContainerdUnavailableError",
    "CorruptDatabaseError",
    "Counts",
    "DatabaseError",
    "DatabaseLockedError",
    "IncompleteMigrationError",
    "LayoutError",
    "Notice",
    "Options",
    "Outcome",
    "Progress",
    "RecordError",
    "Report",
    "Stage",
    "StoreError",
    "__version__",
    "migrate",
]
