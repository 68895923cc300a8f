"""Decisions about broken records: what is wrong, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

OnBrokenName = Literal["repair", "drop", "fail"]


class OnBroken(StrEnum):
    """What is done about a broken record."""

    REPAIR = "repair"
    """Repaired where its data is there, dropped where BuildKit itself would drop it."""
    DROP = "drop"
    """Dropped, with what is built on it."""
    FAIL = "fail"
    """The migration stops before it has changed anything."""


class Action(StrEnum):
    """What is done about one broken record."""

    REPAIRED = "repaired"
    """It stays, or what goes has no data of its own."""
    DELETED = "deleted"
    """The daemon had begun to delete it, and the deletion is completed; it is no loss, and counts against no limit."""
    DROPPED = "dropped"
    """It does not get into the new database, though nobody had meant to delete it."""


class Code(StrEnum):
    """What is wrong with a record.  The values are stable."""

    HOLDER_FINALISED = "holder-finalised"
    """It says that it is not finalised, but has a snapshot of its own: the daemon was killed while it finalised it."""
    MUTABLE_DEAD = "mutable-dead"
    """Its data has become another record's, which is finalised: what the daemon was about to remove."""
    MUTABLE_MISSING = "mutable-missing"
    """It is not finalised, and the snapshot that has its data is gone."""
    SNAPSHOT_MISSING = "snapshot-missing"
    """It has no snapshot: its data is gone, or it is a stub that never had any."""
    MARKED_DELETED = "marked-deleted"
    """The daemon had begun to delete it, or the record that holds its data."""
    RECORD_MISSING = "record-missing"
    """Its snapshot is there, and others are built on it, but the record is not."""
    PARENT_MISSING = "parent-missing"
    """Neither record nor snapshot of its parent is there."""
    PARENT_DROPPED = "parent-dropped"
    """What it is built on is dropped."""
    PARENT_WRONG = "parent-wrong"
    """The parent that it names is not the parent of its snapshot."""
    PARENT_CYCLE = "parent-cycle"
    """It is its own ancestor, or its data's owner is itself."""
    ID_UNUSABLE = "id-unusable"
    """Its id is not UTF-8, which BuildKit can't write into any reference to it."""
    VALUE_MALFORMED = "value-malformed"
    """One of its values is not what its key requires; BuildKit does not start on it."""
    BLOB_GONE = "blob-gone"
    """It names a blob that is not in the content store."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about a broken record, and why: ``text`` is one sentence."""

    code: Code
    record: str
    action: Action
    text: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What the caller wants where a cache is not as it should be.

    ``max_dropped``: percentage of all records that may be dropped.  ``strip_leftovers``: take v1's label from what belongs to
    no record, too.
    """

    on_broken: OnBroken = OnBroken.REPAIR
    max_dropped: float = 5.0
    strip_leftovers: bool = False
