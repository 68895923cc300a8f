"""What a migration did, for people and programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from time import perf_counter
from typing import Any

from asyncmig._version import __version__
from asyncmig.migration.progress import Stage

REPORT_VERSION = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


class Outcome(StrEnum):
    """How a migration that did not fail ended."""

    MIGRATED = "migrated"
    WOULD_MIGRATE = "would-migrate"
    """A dry run: everything was computed, nothing was changed."""
    ALREADY_MIGRATED = "already-migrated"
    NOTHING_TO_DO = "nothing-to-do"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an operator may want to know.  ``code`` is stable, ``record`` an id or ""."""

    code: str
    record: str
    text: str


@dataclass(slots=True)
class Counts:
    """How many of what."""

    records: int = 0
    holders: int = 0
    """Unfinalised records, whose data is another record's snapshot."""
    blobs: int = 0
    """Records that got their blob's digest, diffID and media type."""
    chains: int = 0
    """Records that got chain IDs."""
    views: int = 0
    """Views that an old daemon has left behind; their labels go, too."""
    leases_created: int = 0
    leases_existing: int = 0
    snapshots_released: int = 0
    blobs_released: int = 0
    views_released: int = 0


@dataclass(slots=True)
class Report:
    """The result of a migration.  ``seconds`` holds the wall time of each stage that ran."""

    outcome: Outcome
    path: str
    semantics: str
    layout: str
    snapshotter: str = ""
    namespace: str = ""
    edited: list[str] = field(default_factory=list)
    """The databases that a migration edits, besides making the new one."""
    address: str = ""
    """Socket of the running containerd that has the stores, and ``server`` its version; "" if they are in files."""
    server: str = ""
    counts: Counts = field(default_factory=Counts)
    seconds: dict[str, float] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {"report_version": REPORT_VERSION, "asyncmig_version": __version__, **asdict(self)}

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time that the block takes to ``stage``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start
