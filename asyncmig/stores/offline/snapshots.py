"""Snapshots: entries in containerd's metadata database, and behind them the snapshotter's own database.

``v1/<namespace>/snapshots/<snapshotter>/<key>`` holds ``name``, the key in the snapshotter's database, where
``v1/snapshots/<name>`` holds the kind.  containerd reports a snapshot only if both are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.bolt import Bucket, Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import LayoutError, printable
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.files import SNAPSHOTS, VERSION, OfflineFiles, check_shape, remove_label, update, view
from asyncmig.stores.ports import Kind, SnapshotInfo

_NAME = b"name"
_KIND = b"kind"
_PARENT = b"parent"


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
        kinds = self._kinds(checkpoint, [name for name, _ in entries.values()])
        result: list[SnapshotInfo | None] = []
        for name in names:
            backend, parent = entries.get(name, (b"", ""))
            kind = kinds.get(backend)
            result.append(None if kind is None else SnapshotInfo(name, kind, parent))
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

    def _entries(self, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, tuple[bytes, str]]:
        """Backend key and parent of each snapshot that has a metadata entry."""
        found = {}
        with view(self._files.metadata) as tx:
            snapshots = tx and tx.path_bucket(*self._path)
            for name in names if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(codec.to_bytes(name)) if snapshots else None
                if entry is not None:
                    self._check_metadata(entry, codec.to_bytes(name))
                    found[name] = (entry.get(_NAME) or b"", codec.to_text(entry.get(_PARENT) or b""))
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

    async def views(self) -> list[str]:
        """Keys of all snapshots of kind View, in the order of containerd's Walk.

        Raises :class:`StoreError` for one whose labels could not be removed.
        """
        return await in_thread(self._views)

    def _views(self, checkpoint: Checkpoint) -> list[str]:
        backend_views = set()
        with view(self._files.backend) as tx:
            snapshots = tx and tx.path_bucket(VERSION, SNAPSHOTS)
            for name, value in snapshots.items() if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(name) if snapshots and value is None else None
                if entry is not None and _kind(entry) is Kind.VIEW:
                    backend_views.add(name)
            keys = self._keys_of(checkpoint, backend_views)
            # Only those that are ours: nothing is changed in other namespaces, so their shape is not our concern.
            for name in sorted_in_steps(list(keys)) if snapshots else ():
                checkpoint()
                entry = snapshots.bucket(name) if snapshots else None
                if entry is not None:
                    self._check_backend(entry, name)
        return [codec.to_text(key) for key in sorted_in_steps(list(keys.values()))]

    def _keys_of(self, checkpoint: Checkpoint, backend_names: set[bytes]) -> dict[bytes, bytes]:
        """Metadata keys of those backend snapshots that belong to this namespace and snapshotter."""
        found: dict[bytes, bytes] = {}
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
                    found[name] = key
            if len(found) < len(backend_names):
                self._search(checkpoint, snapshots, backend_names.difference(found), found)
        return found

    def _search(self, checkpoint: Checkpoint, snapshots: Bucket, wanted: set[bytes], found: dict[bytes, bytes]) -> None:
        """Look through all entries for backend names that did not tell their key: another namespace's, most often."""
        for key, value in snapshots.items():
            checkpoint()
            entry = snapshots.bucket(key) if value is None else None
            name = entry and entry.get(_NAME)
            if entry is not None and name and name in wanted:
                self._check_metadata(entry, key)
                found[name] = key

    async def remove_label_many(self, names: Sequence[str], label: str) -> list[bool]:
        """Remove the label from all snapshots in one transaction a database: a cancelled call has no effect."""
        return await in_thread(self._remove_label_many, names, label)

    def _remove_label_many(self, checkpoint: Checkpoint, names: Sequence[str], label: str) -> list[bool]:
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
                if _remove_label(entries, backend_entries, codec.to_bytes(name), codec.to_bytes(label), now):
                    found.add(name)
        return [name in found for name in names]


def _remove_label(entries: Bucket, backend_entries: Bucket, key: bytes, label: bytes, now: bytes) -> bool:
    """Update one snapshot, in containerd's database and in the snapshotter's; ``False`` if it does not exist."""
    entry = entries.bucket(key)
    backend_key = entry and entry.get(_NAME)
    backend_entry = backend_entries.bucket(backend_key) if backend_key else None
    if entry is None or backend_entry is None or not backend_key:
        return False
    remove_label(entry, label, now)
    entries.spill_child(key)
    # Only labels that are inherited ever reach the backend, so there is none to remove; but its Update runs.
    remove_label(backend_entry, label, now)
    backend_entries.spill_child(backend_key)
    return True


def _kind(entry: Bucket) -> Kind:
    raw = entry.get(_KIND) or b"\0"
    return Kind(raw[0]) if raw[0] <= Kind.COMMITTED.value else Kind.UNKNOWN
