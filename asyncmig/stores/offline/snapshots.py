"""Snapshots: entries in containerd's metadata database, and behind them the snapshotter's own database.

``v1/<namespace>/snapshots/<snapshotter>/<key>`` holds ``name``, the key in the snapshotter's database, where
``v1/snapshots/<name>`` holds the kind.  containerd reports a snapshot only if both are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from asyncmig.bolt import BucketValue, Checkpoint, edit_buckets
from asyncmig.concurrency import drop, in_thread, stepping
from asyncmig.errors import LayoutError, printable
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress, no_progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.directories import TREES, missing_of
from asyncmig.stores.offline.entries import EntryReader, by_key, label_edit
from asyncmig.stores.offline.files import SNAPSHOTS, VERSION, OfflineFiles, label_values, update, view
from asyncmig.stores.offline.roots import kept_besides
from asyncmig.stores.offline.scan import Scan, share_of
from asyncmig.stores.ports import Kept, Kind, Resource, SnapshotInfo

_NAME = b"name"
_KIND = b"kind"
_PARENT = b"parent"
_ID = b"id"
"""The name of the directory; a number."""
_SIZE = b"size"
"""Recorded when a snapshot is committed."""
_LOOKS_AT_ONCE = 8192
"""Directories whose paths are held at a time; a million would take as much memory as all the rest."""
_INHERITED_PREFIX = "containerd.io/snapshot/"
_INHERITED_LABEL = "containerd.io/snapshot.ref"


class _Backend(NamedTuple):
    """What the snapshotter's database has: kinds by key, and what is wrong with those whose labels can't be changed."""

    kinds: dict[bytes, int]
    faults: dict[bytes, str]


class OfflineSnapshots:
    """The snapshot port."""

    def __init__(self, files: OfflineFiles, snapshotter: str, progress: Progress, *, shared: bool) -> None:
        self._files = files
        self._progress = progress
        self._shared = shared
        self._scan: Scan[SnapshotInfo] | None = None
        self._backend_keys: list[bytes] = []  # of the snapshots in the scan, in their order
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
        scan = self._scanned(checkpoint, self._progress, names)
        scan.check(names)
        return [scan.get(name) for name in stepping(checkpoint, names)]

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

    async def list_all(self, *, rooted: bool = False) -> list[SnapshotInfo]:
        """All snapshots from one read transaction a database, in the order of containerd's Walk.

        As for Stat, both databases must have them.  Whether the labels of one could be changed is not looked at;
        :meth:`stat_many` tells.
        """
        return await in_thread(self._list_all, rooted)

    def _list_all(self, checkpoint: Checkpoint, rooted: bool) -> list[SnapshotInfo]:
        infos = self._scanned(checkpoint).all()
        return [info for info in stepping(checkpoint, infos) if info.root is not None or not rooted]

    async def views(self) -> list[SnapshotInfo]:
        """All snapshots of kind View, in the order of containerd's Walk.

        Raises :class:`StoreError` for one whose labels could not be removed.
        """
        return await in_thread(self._views)

    def _views(self, checkpoint: Checkpoint) -> list[SnapshotInfo]:
        scan = self._scanned(checkpoint)
        views = [info for info in stepping(checkpoint, scan.all()) if info.kind is Kind.VIEW]
        scan.check(info.name for info in views)
        return views

    # -- reading both databases

    def _scanned(
        self, checkpoint: Checkpoint, progress: Progress = no_progress, names: Sequence[str] = ()
    ) -> Scan[SnapshotInfo]:
        with share_of(len(names), progress) as advance:
            if self._scan is None:
                self._scan = self._read(checkpoint, advance, names)
        return self._scan

    def _read(self, checkpoint: Checkpoint, progress: Progress, names: Sequence[str]) -> Scan[SnapshotInfo]:
        """Read everything.  Of strings that are equal, those in ``names`` above all, there is to be one only."""
        shared = {name: name for name in stepping(checkpoint, names)}
        scan = Scan(_info)
        self._backend_keys.clear()
        backend = self._read_backend(checkpoint, progress)
        with view(self._files.metadata) as tx:
            snapshots = tx.path_bucket(*self._path) if tx else None
            if tx is None or snapshots is None:
                return scan
            read = EntryReader(tx, self._files.metadata_path, "snapshot", _NAME, _PARENT)
            for key, value in stepping(checkpoint, snapshots.entries()):
                if type(value) is not BucketValue:
                    continue
                (backend_key, parent_key), root, fault = read(key, value)
                name, parent = codec.to_text(key), codec.to_text(parent_key)
                name = shared.setdefault(name, name)
                scan.note(name, fault)
                kind = backend.kinds.get(backend_key)
                if kind is None:
                    continue
                scan.note(name, backend.faults.get(backend_key))
                self._backend_keys.append(backend_key)
                scan.facts[name] = (kind, shared.setdefault(parent, parent), root)
        drop(checkpoint, backend.kinds)
        return scan

    def _read_backend(self, checkpoint: Checkpoint, progress: Progress) -> _Backend:
        """The kinds of all snapshots in the snapshotter's database, those of other namespaces, too."""
        found = _Backend({}, {})
        with view(self._files.backend) as tx:
            snapshots = tx.path_bucket(VERSION, SNAPSHOTS) if tx else None
            if tx is None or snapshots is None:
                return found
            read = EntryReader(tx, self._files.backend_path, "snapshot", _KIND)
            for key, value in stepping(checkpoint, snapshots.entries(), progress):
                if type(value) is BucketValue:
                    (kind,), _, fault = read(key, value)
                    found.kinds[key] = kind[0] if kind else 0
                    if fault is not None:
                        found.faults[key] = fault
        return found

    # -- what only a check looks at

    async def missing_directories(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """One look at each directory.

        Raises :class:`StoreError` for one that can't be looked at, be it for a missing permission or a bad disk.
        """
        return await in_thread(self._missing_directories, names)

    def _missing_directories(self, checkpoint: Checkpoint, names: Sequence[str]) -> Mapping[str, str] | None:
        tree = TREES.get(self._snapshotter)
        if tree is None:
            return None
        place = os.path.join(os.path.dirname(self._files.backend_path), "snapshots")
        numbers = self._numbers(checkpoint, names, _ID, codec.decode_uvarint)
        missing: dict[str, str] = {}
        paths: dict[str, str] = {}
        for name, number in stepping(checkpoint, numbers.items()):
            if number:  # an entry without leads nowhere that could be looked at
                paths[name] = os.path.join(place, str(number), tree).rstrip("/")
            if len(paths) == _LOOKS_AT_ONCE:
                missing.update(missing_of(checkpoint, paths))
                paths.clear()
        missing.update(missing_of(checkpoint, paths))
        drop(checkpoint, numbers)
        return missing

    async def recorded_sizes(self, names: Sequence[str]) -> Mapping[str, int]:
        """What the snapshotter has recorded of those that are committed."""
        return await in_thread(self._numbers, names, _SIZE, codec.decode_varint)

    def _numbers(
        self, checkpoint: Checkpoint, names: Sequence[str], field: bytes, decode: Callable[[bytes], int]
    ) -> dict[str, int]:
        """A field of the snapshots in the snapshotter's database, where they have it."""
        if not names:
            return {}
        wanted = set(stepping(checkpoint, names))
        scan = self._scanned(checkpoint)
        by_backend_key = {}
        for name, key in stepping(checkpoint, zip(scan.facts, self._backend_keys, strict=True)):
            if name in wanted:
                by_backend_key[key] = name
        found: dict[str, int] = {}
        with view(self._files.backend) as tx:
            snapshots = tx.path_bucket(VERSION, SNAPSHOTS) if tx and by_backend_key else None
            if tx is None or snapshots is None:
                return found
            read = EntryReader(tx, self._files.backend_path, "snapshot", field)
            for key, value in stepping(checkpoint, snapshots.entries()):
                if key in by_backend_key and type(value) is BucketValue and (raw := read(key, value)[0][0]):
                    found[by_backend_key[key]] = decode(raw)
        return found

    async def kept_besides(self, roots: Sequence[Resource]) -> Kept | None:
        """From one read transaction, which is the whole state: containerd is stopped."""
        return await in_thread(self._kept_besides, roots)

    def _kept_besides(self, checkpoint: Checkpoint, roots: Sequence[Resource]) -> Kept:
        with view(self._files.metadata) as tx:
            space = tx.path_bucket(VERSION, self._files.namespace) if tx else None
            if space is None:
                return Kept(set(), set())
            return kept_besides(checkpoint, space, self._snapshotter, roots)

    # -- changing labels

    async def remove_label_many(self, names: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        """Remove the label from all snapshots in one transaction a database: a cancelled call has no effect."""
        return await in_thread(self._remove_label_many, names, label, tidy)

    def _remove_label_many(self, checkpoint: Checkpoint, names: Sequence[str], label: str, tidy: bool) -> list[bool]:
        return self._update_many(checkpoint, names, label, tidy=tidy)

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
        self,
        checkpoint: Checkpoint,
        names: Sequence[str],
        label: str,
        value_of: Callable[[str], str] | None = None,
        *,
        tidy: bool = False,
    ) -> list[bool]:
        if not names or self._files.backend is None:
            return [False for _ in names]
        missing = set(stepping(checkpoint, names))  # not in one step of C: the event loop would wait for it
        scan = self._scanned(checkpoint)
        found, backend_keys = [], []
        for name, key in stepping(checkpoint, zip(scan.facts, self._backend_keys, strict=True)):
            if name in missing:
                missing.remove(name)
                found.append(name)
                backend_keys.append(key)
        self._progress(len(names) - len(found))  # the others are counted as they are changed
        self._scan = None
        scan.forget(checkpoint)
        now, label_name = codec.now(), codec.to_bytes(label)
        # The inner transaction, the backend's, commits first, as in containerd.
        with update(self._files.metadata) as metadata, update(self._files.backend) as backend:
            entries, backend_entries = metadata.path_bucket(*self._path), backend.path_bucket(VERSION, SNAPSHOTS)
            if entries is None or backend_entries is None:
                return [False for _ in names]
            ordered = map(codec.to_bytes, stepping(checkpoint, found, self._progress))
            edit_buckets(entries, ordered, label_edit(metadata, label_name, now, value_of and by_key(value_of), tidy=tidy))
            # Only inherited labels reach the backend (containerd snapshots.FilterInheritedLabels); but its Update runs.
            in_backend = None
            if value_of is not None and (label == _INHERITED_LABEL or label.startswith(_INHERITED_PREFIX)):
                values = {key: codec.to_bytes(value_of(name)) for name, key in zip(found, backend_keys, strict=True)}
                in_backend = values.__getitem__
            backend_ordered = stepping(checkpoint, sorted_in_steps(backend_keys))
            edit_buckets(backend_entries, backend_ordered, label_edit(backend, label_name, now, in_backend, tidy=tidy))
        return [name not in missing for name in names]


def _info(name: str, kind: int, parent: str, root: str | None) -> SnapshotInfo:
    return SnapshotInfo(name, _KINDS[kind] if kind < len(_KINDS) else Kind.UNKNOWN, parent, root)


_KINDS = tuple(Kind)
"""In the order of their numbers."""
