"""The records of one cache on their way through the stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.record import Record
from asyncmig.errors import RecordError
from asyncmig.migration.report import Report
from asyncmig.migration.semantics import Semantics

ADVICE = (
    "BuildKit v0.6 drops such a record, and what is built on it, when it starts: copy the whole cache, "
    "start it once and stop it again"
)
"""What to do about a broken record."""


@dataclass(slots=True)
class Cache:
    """The open v1 database, its records in the order of their ids, and what is to be reported about them."""

    database: MetadataDb
    semantics: Semantics
    report: Report
    records: list[Record] = field(default_factory=list)
    by_id: dict[str, Record] = field(default_factory=dict)

    def error(self, record: Record, cause: str) -> RecordError:
        """The error for a record that cannot be migrated."""
        return RecordError(self.database.path, record.id, cause)


def stepping(checkpoint: Checkpoint, records: Iterable[Record]) -> Iterator[Record]:
    """The records, with a checkpoint before each."""
    for record in records:
        checkpoint()
        yield record
