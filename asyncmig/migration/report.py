"""What a migration did, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from platform import platform, python_version
from typing import Any

from asyncmig._version import __version__
from asyncmig.migration.decisions import Decision

REPORT_VERSION = 3
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


class Outcome(StrEnum):
    """How a migration that did not fail ended."""

    MIGRATED = "migrated"
    WOULD_MIGRATE = "would-migrate"
    """A dry run: everything was computed, nothing was changed."""
    ALREADY_MIGRATED = "already-migrated"
    NOTHING_TO_DO = "nothing-to-do"
    INTERRUPTED = "interrupted"
    """A dry run: a migration was interrupted after it had published the new database, and would be completed."""
    ROLLBACK_INTERRUPTED = "rollback-interrupted"
    """A rollback was interrupted, and must be completed first."""
    COMPLETED = "completed"
    """An interrupted run had published the new database; what was left to do is done."""
    ROLLED_BACK = "rolled-back"
    WOULD_ROLL_BACK = "would-roll-back"
    """A dry run of a rollback."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an operator may want to know; it changes no outcome and no exit code.

    ``code`` is stable.  ``name`` is the record, key or digest that it is about, or "".  ``text`` is one sentence.
    """

    code: str
    name: str
    text: str


@dataclass(slots=True)
class Leftovers:
    """What carries v1's label and belongs to no record: keys and digests."""

    snapshots: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """How many of what."""

    records: int = 0
    """Records in the new database."""
    repaired: int = 0
    """Decisions that repair something."""
    found: int = 0
    """Records in ``metadata.db``."""
    deleted: int = 0
    """Records whose deletion the daemon had begun, and which is completed."""
    dropped: int = 0
    """Records whose data is gone, or that BuildKit would have dropped, too."""
    holders: int = 0
    """Unfinalised records, whose data is another record's snapshot."""
    blobs: int = 0
    """Records that got their blob's digest, diffID and media type."""
    chains: int = 0
    """Records that got chain IDs."""
    views: int = 0
    """Stale views, left by a stopped daemon; their labels go, too."""
    leases: int = 0
    """Leases that are made, or completed."""
    snapshots_labelled: int = 0
    blobs_labelled: int = 0
    """Snapshots (views included) and blobs whose labels go."""
    leases_created: int = 0
    leases_existing: int = 0
    snapshots_released: int = 0
    blobs_released: int = 0
    views_released: int = 0
    leases_deleted: int = 0
    labels_restored: int = 0
    """By a rollback."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What every run tells in the end.

    ``path`` is the worker directory, ``layout`` the kind of cache.  ``seconds`` holds the wall time of each stage that ran.
    """

    path: str
    layout: str
    snapshotter: str = ""
    namespace: str = ""
    address: str = ""
    """Socket of the running containerd that has the stores, and ``server`` its version; "" if they are in files."""
    server: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Report(Result):
    """The result of a migration, a plan or a rollback.  ``decisions`` tell what is done about broken records."""

    outcome: Outcome
    semantics: str
    edited: list[str] = field(default_factory=list)
    """The databases that a migration edits, besides making the new one."""
    counts: Counts = field(default_factory=Counts)
    decisions: list[Decision] = field(default_factory=list)
    leftovers: Leftovers = field(default_factory=Leftovers)
    bytes_needed: dict[str, int] = field(default_factory=dict)
    """Free space that is needed at most, in bytes, by a path on each file system concerned."""
    seconds_expected: float = 0.0
    """Of a dry run: about how long the migration takes from its beginning to its end."""
    refused: str = ""
    """Of a dry run: why the migration would refuse to begin, "" if it would not."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """The options of the run, by name."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {**versions(), "outcome": self.outcome, **asdict(self)}


def versions() -> dict[str, Any]:
    """What a report was written by."""
    return {
        "report_version": REPORT_VERSION,
        "asyncmig_version": __version__,
        "python_version": python_version(),
        "platform": platform(),
    }
