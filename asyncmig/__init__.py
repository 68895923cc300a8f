"""Migrate BuildKit v1 build caches (``metadata.db``) in place to v2, from a command or from asyncio and trio programs.

>>> report = await asyncmig.migrate("/var/lib/buildkit/runc-overlayfs")  # doctest: +SKIP
"""

from asyncmig._version import __version__
from asyncmig.api import Options, find_caches, migrate, plan, rollback, verify
from asyncmig.audit.findings import Finding, Verification
from asyncmig.buildkit.changes import IndexChange, RecordChange
from asyncmig.errors import (
    AsyncmigError,
    BucketError,
    ContainerdError,
    ContainerdUnavailableError,
    CorruptDatabaseError,
    DatabaseError,
    DatabaseLockedError,
    DropLimitError,
    IncompleteMigrationError,
    IncompleteRollbackError,
    LayoutError,
    OptionError,
    RecordError,
    ResourceError,
    StoreError,
    UntrustedError,
)
from asyncmig.migration.changes import LabelChange, LeaseChange
from asyncmig.migration.decisions import Decision, OnBroken
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.report import Counts, Note, Outcome, Report

__all__ = [
    "AsyncmigError",
    "BucketError",
    "ContainerdError",
    "ContainerdUnavailableError",
    "CorruptDatabaseError",
    "Counts",
    "DatabaseError",
    "DatabaseLockedError",
    "Decision",
    "DropLimitError",
    "Finding",
    "IncompleteMigrationError",
    "IncompleteRollbackError",
    "IndexChange",
    "LabelChange",
    "LayoutError",
    "LeaseChange",
    "Note",
    "OnBroken",
    "OptionError",
    "Options",
    "Outcome",
    "Progress",
    "RecordChange",
    "RecordError",
    "Report",
    "ResourceError",
    "Stage",
    "StoreError",
    "UntrustedError",
    "Verification",
    "__version__",
    "find_caches",
    "migrate",
    "plan",
    "rollback",
    "verify",
]
