"""What a check of a v2 cache finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from asyncmig._version import __version__
from asyncmig.migration.report import Result

VERIFY_VERSION = 2
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


class FindingCode(StrEnum):
    """What is wrong with a record, or with what belongs to it.  The values are stable."""

    VALUE_MALFORMED = "value-malformed"
    """A value can't be read; BuildKit does not start on it."""
    MARKED_DELETED = "marked-deleted"
    """BuildKit removes the record when it starts."""
    PARENT_MISSING = "parent-missing"
    """It is built on a record that does not exist: BuildKit drops it, with its lease, when it starts."""
    PARENT_CYCLE = "parent-cycle"
    """It is its own ancestor, or owns its own data: BuildKit does not come to an end over it."""
    PARENT_UNLOADABLE = "parent-unloadable"
    """What it is built on, or the record that owns its data, can't be loaded; BuildKit drops it, too."""
    MUTABLE_MISSING = "mutable-missing"
    """It is not finalised, the record that owns its data does not exist, and it has no snapshot of its own."""
    SNAPSHOT_MISSING = "snapshot-missing"
    """Its snapshot does not exist; if it is committed, that shows when it is used."""
    DIRECTORY_MISSING = "directory-missing"
    """The directory of its snapshot does not exist: the data is gone, and that shows when it is used."""
    DIRECTORIES_MISSING = "directories-missing"
    """No snapshot has its directory: the data is elsewhere, or lost."""
    SNAPSHOT_ACTIVE = "snapshot-active"
    """The record is committed, its snapshot is not."""
    PARENT_MISMATCH = "parent-mismatch"
    """Its snapshot is not built on the snapshot of its parent."""
    LEASE_MISSING = "lease-missing"
    """Nothing protects its data: the next garbage collection takes it."""
    LEASE_EXPIRED = "lease-expired"
    """containerd removes its lease, and its data with it."""
    LEASE_INCOMPLETE = "lease-incomplete"
    """Its lease lacks its snapshot or its blob: the next garbage collection takes that."""
    LEASE_SURPLUS = "lease-surplus"
    """The lease of a record that is not finalised holds a snapshot that does not exist; nobody ever deletes it."""
    LEASE_WITHOUT_RECORD = "lease-without-record"
    """A lease as BuildKit makes them for records, without record; nobody ever deletes it."""
    BLOB_MALFORMED = "blob-malformed"
    """Its blob is no digest."""
    BLOB_MISSING = "blob-missing"
    """The content store does not know its blob."""
    BLOB_DATA_MISSING = "blob-data-missing"
    """The data of its blob is missing, or not as long as the content store has it."""
    DIFFID_MISSING = "diffid-missing"
    """It has a blob and no diffID."""
    SIZE_MISSING = "size-missing"
    """The size of its blob is not recorded: exporting or pushing it fails, or writes a manifest with size -1."""
    SIZE_WRONG = "size-wrong"
    """The size that is recorded is not that of the blob."""
    MEDIA_TYPE_WRONG = "media-type-wrong"
    """The media type is not that of the blob's first bytes."""
    CHAIN_WRONG = "chain-wrong"
    """A chain ID is not what its layers make."""
    CHAIN_BOGUS = "chain-bogus"
    """It has chain IDs although a layer below has no blob: they name nothing, and BuildKit never computes them again."""
    CHAIN_HALF = "chain-half"
    """It has one of the two chain IDs."""
    INDEX_MISSING = "index-missing"
    """A value says that it is indexed, and is not: it is not found again."""
    INDEX_STALE = "index-stale"
    """The index names a record that does not exist."""
    INDEX_ENDLESS = "index-endless"
    """An entry of the index has no "::": newer BuildKits loop over it for ever."""
    LABEL_LEFT = "label-left"
    """Something that belongs to a record has v1's label: it is never collected, not even after a prune."""


class NoteCode(StrEnum):
    """What is worth knowing and concerns no record; in a containerd it may be somebody else's."""

    HOLDER_FINALISED = "holder-finalised"
    """It says that it is not finalised and its owner is gone, but its snapshot is there: BuildKit before v0.10 drops it."""
    MEDIA_TYPE_UNKNOWN = "media-type-unknown"
    """No media type that is known for layers."""
    LEASE_NOT_FLAT = "lease-not-flat"
    """The lease of a record protects what labels refer to as well."""
    LEASE_WITHOUT_RECORD = "lease-without-record"
    LABEL_WITHOUT_RECORD = "label-without-record"
    """v1's label keeps something that belongs to no record."""
    VIEW_STALE = "view-stale"
    """A stale view, left by a stopped daemon and unreferenced: the next garbage collection removes it."""
    SNAPSHOT_UNOWNED = "snapshot-unowned"
    """No record, lease, label, image or container keeps it, nor what is built on it: the next collection takes it."""
    BLOB_UNOWNED = "blob-unowned"
    """No record, lease, label, image or container keeps it: the next collection takes it."""
    SNAPSHOT_FOREIGN = "snapshot-foreign"
    """As ``snapshot-unowned``, but in a running containerd, whose images and containers are not looked at: it may be theirs."""
    BLOB_FOREIGN = "blob-foreign"
    """As ``blob-unowned``, likewise."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found: a code of :class:`FindingCode`, the record, key or digest, and a sentence."""

    code: str
    name: str
    text: str


@dataclass(slots=True)
class Inventory:
    """How many of what there is."""

    records: int = 0
    committed: int = 0
    holders: int = 0
    """Records that are not finalised."""
    mutable: int = 0
    lazy: int = 0
    """Layers that are not extracted yet."""
    snapshots: int = 0
    blobs: int = 0
    leases: int = 0
    owned_blobs: int = 0
    owned_bytes: int = 0
    """Of the records' blobs, each once."""
    unowned_blobs: int = 0
    unowned_bytes: int = 0
    """Of blobs that belong to no record; a lease, or another blob, may need them."""
    free_bytes: dict[str, int] = field(default_factory=dict)
    """By the code of a note: what the next collection frees, as far as sizes are recorded."""


@dataclass(slots=True, kw_only=True)
class Verification(Result):
    """The result of a check.  ``findings`` concern this cache's records; notes have a code of :class:`NoteCode`."""

    interrupted: str = ""
    """``migrate`` or ``rollback`` if such a run was interrupted and must be completed first, "" if none was."""
    counts: Inventory = field(default_factory=Inventory)
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings and not self.interrupted

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {"verify_version": VERIFY_VERSION, "asyncmig_version": __version__, "clean": self.clean, **asdict(self)}
