"""Snapshots: entries in containerd's metadata database, and behind them the snapshotter's own database.

``v1/<namespace>/snapshots/<snapshotter>/<key>`` holds ``name``, the key in the snapshotter's database, where
``v1/snapshots/<name>`` holds the kind.  containerd reports a snapshot only if both are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncmig.bolt import Bucket, Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import LayoutError, printable
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.files import (
    SNAPSHOTS,
    VERSION,
    OfflineFiles,
    check_shape,
    label_values,
    root_label,
    set_label,
    update,
    view,
)
from asyncmig.stores.ports import Kind, SnapshotInfo

_NAME = b"name"
_KIND = b"kind"
_PARENT = b"parent"
_INHERITED_PREFIX = "containerd.io/snapshot/"
_INHERITED_LABEL = "containerd.io/snapshot.ref"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the metadata database has of a snapshot."""

    key: str
    backend_key: bytes
    parent: str
    root: str | None

    @classmethod
    def read(cls, key: str, entry: Bucket) -> _Entry:
        return cls(key, entry.get(_NAME) or b"", codec.to_text(entry.get(_PARENT) or b""), root_label(entry))

    def info(self, kind: Kind) -> SnapshotInfo:
        return SnapshotInfo(self.key, kind, self.parent, self.root)


class OfflineSnapshots:
    """The snapshot port."""

    def __init__(self, files: OfflineFiles, snapshotter: str, progress: Progress, *, shared: bool) -> None:
        self._files = files
        self._progress = progress
        self._shared = shared
        self._snapshotter = snapshotter
        self._path = (VERSION, files.namespace, SNAPSHOTS, codec.to_bytes(snapshotter))

    @property
    def snapshotter(self) -> str:
        """Name of the snapshotter."""
        return self._snapshotter

    @property
    def shared(self) -> bool:
        """The files of a containerd are all its users', those of an OCI worker its own."""
        return self._shared

    async def stat_many(self, names: Sequence[str]) -> list[SnapshotInfo | None]:
        """Stat of all snapshots from one read transaction a database.

        Raises :class:`StoreError` for one whose labels could not be removed.
        """
        return await in_thread(self._stat_many, names)

    def _stat_many(self, checkpoint: Checkpoint, names: Sequence[str]) -> list[SnapshotInfo | None]:
        if names:
            self._check_place()
        entries = self._entries(checkpoint, names)
        self._progress(len(names) - len(entries))  # the others are counted as their kind is read
        kinds = self._kinds(checkpoint, [entry.backend_key for entry in entries.values()])
        result: list[SnapshotInfo | None] = []
        for name in names:
            entry = entries.get(name)
            kind = kinds.get(entry.backend_key) if entry else None
            result.append(None if entry is None or kind is None else entry.info(kind))
        return result

    def _check_place(self) -> None:
        """Refuse files, a namespace or a snapshotter that can't be the right ones: all snapshots would seem to be missing."""
        files = self._files
        files.require()
        for kind, wanted, found in (
            ("namespace", codec.to_text(files.namespace), files.namespaces()),
            ("snapshotter", self._snapshotter, files.snapshotters()),
        ):
            if found and wanted not in found:
                raise LayoutError(
                    f"{printable(files.metadata_path)}: has no {kind} {printable(wanted)}; "
                    f"there is: {', '.join(map(printable, found))} (--{kind})"
                )

    def _entries(self, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, _Entry]:
        """Each snapshot that has a metadata entry."""
        found = {}
        with view(self._files.metadata) as tx:
            snapshots = tx and tx.path_bucket(*self._path)
            for name in names if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(codec.to_bytes(name)) if snapshots else None
                if entry is not None:
                    self._check_metadata(entry, codec.to_bytes(name))
                    found[name] = _Entry.read(name, entry)
        return found

    def _kinds(self, checkpoint: Checkpoint, backend_names: list[bytes]) -> dict[bytes, Kind]:
        found = {}
        with view(self._files.backend) as tx:
            snapshots = tx and tx.path_bucket(VERSION, SNAPSHOTS)
            # In key order, so that each page is read once.
            for name in sorted_in_steps(backend_names) if snapshots else ():
                checkpoint()
                self._progress(1)
                entry = snapshots.bucket(name) if snapshots and name else None
                if entry is not None:
                    self._check_backend(entry, name)
                    found[name] = _kind(entry)
        return found

    def _check_metadata(self, entry: Bucket, key: bytes) -> None:
        check_shape(entry, self._files.metadata_path, f"snapshot {codec.to_text(key)}")

    def _check_backend(self, entry: Bucket, name: bytes) -> None:
        check_shape(entry, self._files.backend_path, f"snapshot {codec.to_text(name)}")

    async def list_all(self, *, rooted: bool = False) -> list[SnapshotInfo]:
        """All snapshots from one read transaction a database, in the order of containerd's Walk.

        As for Stat, both databases must have them.  Whether the labels of one could be changed is not looked at;
        :meth:`stat_many` tells.
        """
        return await in_thread(self._list_all, rooted)

    def _list_all(self, checkpoint: Checkpoint, rooted: bool) -> list[SnapshotInfo]:
        entries = self._all_entries(checkpoint, rooted)
        kinds = {}
        with view(self._files.backend) as tx:
            snapshots = tx and tx.path_bucket(VERSION, SNAPSHOTS)
            for name in sorted_in_steps([entry.backend_key for entry in entries]) if snapshots else ():
                checkpoint()
                backend_entry = snapshots.bucket(name) if snapshots and name else None
                if backend_entry is not None:
                    kinds[name] = _kind(backend_entry)
        return [entry.info(kinds[entry.backend_key]) for entry in entries if entry.backend_key in kinds]

    def _all_entries(self, checkpoint: Checkpoint, rooted: bool) -> list[_Entry]:
        found = []
        with view(self._files.metadata) as tx:
            snapshots = tx and tx.path_bucket(*self._path)
            for key, value in snapshots.items() if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(key) if snapshots and value is None else None
                if entry is not None and not (rooted and root_label(entry) is None):
                    found.append(_Entry.read(codec.to_text(key), entry))
        return found

    async def views(self) -> list[SnapshotInfo]:
        """All snapshots of kind View, in the order of containerd's Walk.

        Raises :class:`StoreError` for one whose labels could not be removed.
        """
        return await in_thread(self._views)

    def _views(self, checkpoint: Checkpoint) -> list[SnapshotInfo]:
        backend_views = set()
        with view(self._files.backend) as tx:
            snapshots = tx and tx.path_bucket(VERSION, SNAPSHOTS)
            for name, value in snapshots.items() if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(name) if snapshots and value is None else None
                if entry is not None and _kind(entry) is Kind.VIEW:
                    backend_views.add(name)
            entries = self._entries_of(checkpoint, backend_views)
            # Only those that are ours: nothing is changed in other namespaces, so their shape is not our concern.
            for name in sorted_in_steps(list(entries)) if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(name) if snapshots else None
                if entry is not None:
                    self._check_backend(entry, name)
        by_key = {codec.to_bytes(entry.key): entry for entry in entries.values()}
        return [by_key[key].info(Kind.VIEW) for key in sorted_in_steps(list(by_key))]

    def _entries_of(self, checkpoint: Checkpoint, backend_names: set[bytes]) -> dict[bytes, _Entry]:
        """Metadata entries of those backend snapshots that belong to this namespace and snapshotter."""
        found: dict[bytes, _Entry] = {}
        with view(self._files.metadata) as tx:
            snapshots = tx and tx.path_bucket(*self._path)
            if not snapshots:
                return found
            # containerd names a backend snapshot <namespace>/<number>/<key>, so the key can be guessed, and confirmed.
            for name in sorted_in_steps(list(backend_names)):
                checkpoint()
                key = name.split(b"/", 2)[-1]
                entry = snapshots.bucket(key) if key else None
                if entry is not None and entry.get(_NAME) == name:
                    self._check_metadata(entry, key)
                    found[name] = _Entry.read(codec.to_text(key), entry)
            if len(found) < len(backend_names):
                self._search(checkpoint, snapshots, backend_names.difference(found), found)
        return found

    def _search(self, checkpoint: Checkpoint, snapshots: Bucket, wanted: set[bytes], found: dict[bytes, _Entry]) -> None:
        """Look through all entries for backend names that did not tell their key: another namespace's, most often."""
        for key, value in snapshots.items():
            checkpoint()
            entry = snapshots.bucket(key) if value is None else None
            name = entry and entry.get(_NAME)
            if entry is not None and name and name in wanted:
                self._check_metadata(entry, key)
                found[name] = _Entry.read(codec.to_text(key), entry)

    async def remove_label_many(self, names: Sequence[str], label: str) -> list[bool]:
        """Remove the label from all snapshots in one transaction a database: a cancelled call has no effect."""
        return await in_thread(self._remove_label_many, names, label)

    def _remove_label_many(self, checkpoint: Checkpoint, names: Sequence[str], label: str) -> list[bool]:
        return self._update_many(checkpoint, names, label, lambda _: "")

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        """Set the label of all snapshots in one transaction a database: a cancelled call has no effect.

        An empty value removes the label; of several values for one snapshot the last one counts.  Raises :class:`StoreError`
        for a label that is longer than containerd allows.
        """
        return await in_thread(self._set_label_many, values, label)

    def _set_label_many(self, checkpoint: Checkpoint, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        wanted = label_values(checkpoint, values, label)
        return self._update_many(checkpoint, [name for name, _ in values], label, wanted.__getitem__)

    def _update_many(
        self, checkpoint: Checkpoint, names: Sequence[str], label: str, value_of: Callable[[str], str]
    ) -> list[bool]:
        if not names or self._files.backend is None:
            return [False for _ in names]
        found, now = set(), codec.now()
        # The inner transaction, the backend's, commits first, as in containerd.
        with update(self._files.metadata) as metadata, update(self._files.backend) as backend:
            entries, backend_entries = metadata.path_bucket(*self._path), backend.path_bucket(VERSION, SNAPSHOTS)
            for name in sorted_in_steps(list(names)) if entries and backend_entries else ():
                checkpoint()
                self._progress(1)
                assert entries is not None
                assert backend_entries is not None
                if _set_label(entries, backend_entries, codec.to_bytes(name), label, value_of(name), now):
                    found.add(name)
        return [name in found for name in names]


def _set_label(entries: Bucket, backend_entries: Bucket, key: bytes, label: str, value: str, now: bytes) -> bool:
    """Update one snapshot, in containerd's database and in the snapshotter's; ``False`` if it does not exist."""
    entry = entries.bucket(key)
    backend_key = entry and entry.get(_NAME)
    backend_entry = backend_entries.bucket(backend_key) if backend_key else None
    if entry is None or backend_entry is None or not backend_key:
        return False
    name, text = codec.to_bytes(label), codec.to_bytes(value)
    set_label(entry, name, text, now)
    entries.spill_child(key)
    # Only labels that are inherited reach the backend (containerd snapshots.FilterInheritedLabels); but its Update runs.
    inherited = label == _INHERITED_LABEL or label.startswith(_INHERITED_PREFIX)
    set_label(backend_entry, name, text if inherited else b"", now)
    backend_entries.spill_child(backend_key)
    return True


def _kind(entry: Bucket) -> Kind:
    raw = entry.get(_KIND) or b"\0"
    return Kind(raw[0]) if raw[0] <= Kind.COMMITTED.value else Kind.UNKNOWN
