"""What a check of a v2 cache works on: the records, and what the stores have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from asyncmig.audit.findings import Finding, FindingCode, NoteCode, Verification
from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.v2 import V2Record
from asyncmig.concurrency import stepping
from asyncmig.migration.reporter import Reporter
from asyncmig.stores.ports import ContentInfo, Kept, Lease, SnapshotInfo


@dataclass(slots=True)
class CacheState:
    """Records in the order of their ids; snapshots, blobs and leases by name.

    ``released`` are snapshots whose label a migration has removed.  ``needed`` are those that records have or are built on,
    ``unowned`` those that nothing keeps for all that is known.  ``missing``, ``sizes`` and ``kept`` are what the store of
    snapshots answers.  ``heads`` has the first bytes of the records' blobs, ``None`` for one whose data is not there.
    """

    snapshotter: str
    is_shared: bool
    released: Set[str] = frozenset()
    records: list[V2Record] = field(default_factory=list)
    by_id: dict[str, V2Record] = field(default_factory=dict)
    snapshots: dict[str, SnapshotInfo] = field(default_factory=dict)
    blobs: dict[str, ContentInfo] = field(default_factory=dict)
    heads: dict[str, bytes | None] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    unowned: list[str] = field(default_factory=list)
    missing: Mapping[str, str] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    kept: Kept | None = None

    def take_snapshots(self, checkpoint: Checkpoint, found: Sequence[SnapshotInfo]) -> None:
        """Take the snapshots that were listed."""
        for info in stepping(checkpoint, found):
            self.snapshots[info.name] = info

    def take_blobs(self, checkpoint: Checkpoint, found: Sequence[ContentInfo]) -> None:
        """Take the blobs that were listed."""
        for info in stepping(checkpoint, found):
            self.blobs[info.digest] = info

    def take_heads(self, checkpoint: Checkpoint, blobs: Sequence[ContentInfo], heads: Sequence[bytes | None]) -> None:
        """Take the first bytes of blobs."""
        for blob, head in stepping(checkpoint, zip(blobs, heads, strict=True)):
            self.heads[blob.digest] = head

    def take_leases(self, checkpoint: Checkpoint, found: Sequence[Lease]) -> None:
        """Take the leases that were listed."""
        for lease in stepping(checkpoint, found):
            self.leases[lease.id] = lease

    def with_ancestors(self, checkpoint: Checkpoint, names: Iterable[str]) -> set[str]:
        """Those of the snapshots that exist, and all that they are built on."""
        found: set[str] = set()
        for name in stepping(checkpoint, names):
            link = name
            while link in self.snapshots and link not in found:
                found.add(link)
                link = self.snapshots[link].parent
        return found


@dataclass(frozen=True, slots=True)
class Findings:
    """Where findings and notes go."""

    reporter: Reporter[Verification]

    def add(self, code: FindingCode, name: str, text: str) -> None:
        """Something is wrong with a record."""
        self.reporter.result.findings.append(Finding(code.value, name, text))

    def note(self, code: NoteCode, name: str, text: str) -> None:
        """Something is worth knowing."""
        self.reporter.note(code.value, text, name)
