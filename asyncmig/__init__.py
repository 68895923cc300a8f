"""Migrate BuildKit v1 build caches (``metadata.db``) in place to v2, from a command or from asyncio and trio programs.

>>> report = await asyncmig.migrate("/var/lib/buildkit/runc-overlayfs")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asyncmig._version import __version__
from asyncmig.api import Options, migrate, plan, rollback, verify
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
    RecordError,
    ResourceError,
    StoreError,
    UntrustedError,
)
from asyncmig.migration.decisions import Decision, OnBroken
from asyncmig.migration.findings import Finding, Verification
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.report import Counts, Notice, Outcome, Report

if TYPE_CHECKING:
    from asyncmig.buildkit.metadata import IndexChange, RecordChange
    from asyncmig.migration.plan import LabelChange, LeaseChange

_AT_FIRST_USE = {
    "IndexChange": "asyncmig.buildkit.metadata",
    "RecordChange": "asyncmig.buildkit.metadata",
    "LabelChange": "asyncmig.migration.plan",
    "LeaseChange": "asyncmig.migration.plan",
}
"""What a plan tells; its modules are loaded by then, and few programs ask for them."""


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_AT_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_AT_FIRST_USE})


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
    "Notice",
    "OnBroken",
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
    "migrate",
    "plan",
    "rollback",
    "verify",
]
