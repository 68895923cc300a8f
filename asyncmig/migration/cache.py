"""The records of one cache on their way through the stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb, Revision
from asyncmig.buildkit.record import Record
from asyncmig.concurrency import drop
from asyncmig.errors import RecordError
from asyncmig.migration.decisions import Action, Code, Decision, OnBroken, Policy
from asyncmig.migration.report import Report
from asyncmig.migration.reporter import Reporter
from asyncmig.migration.semantics import Semantics

ADVICE = (
    "BuildKit v0.6 drops such a record, and what is built on it, when it starts: back up the whole cache, "
    "start BuildKit v0.6 once and stop it again; or use --semantics hardened"
)
"""What to do about a broken record."""
_FAIL_ADVICE = "--on-broken fail stops here; the default, --on-broken repair, goes on"


@dataclass(slots=True)
class Cache:
    """The open v1 database, its records in the order of their ids, and what is to be reported about them.

    ``place``: where the stores are, as :class:`Journal` has it.

    ``malformed``: records with a malformed value, and what is wrong with it.  ``dropped``: ids of the records that are not to
    be in the new database; ``freed_snapshots`` and ``freed_blobs``: what they have kept.  ``dead_blobs``: blobs of records
    whose data is missing, though the content store knows them.  ``wanted_blobs``: how many records name a blob, and
    ``lost_blobs`` how many of them do without it because it is not there.
    """

    database: MetadataDb
    semantics: Semantics
    reporter: Reporter[Report]
    policy: Policy = field(default_factory=Policy)
    place: str = ""
    records: list[Record] = field(default_factory=list)
    by_id: dict[str, Record] = field(default_factory=dict)
    malformed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    freed_snapshots: set[str] = field(default_factory=set)
    freed_blobs: set[str] = field(default_factory=set)
    dead_blobs: set[str] = field(default_factory=set)
    wanted_blobs: int = 0
    lost_blobs: int = 0

    def forget_records(self, checkpoint: Checkpoint) -> None:
        """Drop the records: the tail needs leases and labels only, and would add to what is the most memory so far."""
        drop(checkpoint, self.by_id, self.records)

    @property
    def report(self) -> Report:
        """What is reported in the end."""
        return self.reporter.result

    def error(self, record: Record, cause: str) -> RecordError:
        """The error for a record that cannot be migrated."""
        return RecordError(self.database.path, record.id, cause)

    def decide(self, code: Code, record: Record, action: Action, text: str) -> None:
        """Report what is done about a broken record.  Raises :class:`RecordError` if such a record is to stop the migration."""
        if self.policy.on_broken is OnBroken.FAIL:
            raise self.error(record, f"{text}; {_FAIL_ADVICE}")
        self.report.decisions.append(Decision(code, record.id, action, text))

    @property
    def revision(self) -> Revision:
        """What the new database is to hold."""
        return Revision(self.records, self.by_id, dropped=self.dropped, tidy=self.semantics.repairs)
