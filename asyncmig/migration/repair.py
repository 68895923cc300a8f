"""Stage resolve for caches that may have broken records: what stays, what goes, which is whose parent.

A daemon that is killed leaves records without snapshot and snapshots without record; BuildKit v0.6 dropped such records when it
started, and what was built on them.  Here each record is settled by the data that is there:

* a record needs its snapshot and its parent's record; one that is not finalised needs the record that owns its data instead,
  so each record needs at most one other, and walking along that settles all of them once;
* a snapshot that others are built on, without a record of its own, gets one;
* a holder that has a snapshot of its own was finalised, though the daemon did not get to note it: it stays, and the mutable
  record that it was made of, whose snapshot it is now, goes.

Sources: moby/buildkit v0.6.4 ``cache/refs.go`` (``finalize``: snapshot first, then both records, in any order),
``cache/manager.go`` (``init``, ``getRecord``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit import gojson, keys
from asyncmig.buildkit.metadata import to_bytes
from asyncmig.buildkit.record import Changes, Record
from asyncmig.concurrency import drop, in_thread, stepping
from asyncmig.errors import printable
from asyncmig.migration.cache import Cache
from asyncmig.migration.decisions import Action, Code, OnBroken
from asyncmig.migration.resolve import no_snapshot_at_all
from asyncmig.stores.ports import Kind, SnapshotInfo, SnapshotStore

Infos = dict[str, SnapshotInfo | None]
"""What is known of snapshots by key; ``None`` for one that does not exist."""

_RECOVERED = "recovered by asyncmig: its snapshot existed, and other records are built on it, but its record was missing"


async def resolve_and_repair(cache: Cache, snapshots: SnapshotStore) -> None:
    """Settle which records stay, and set committed, parent and snapshot of those.

    Every decision is reported.  Raises :class:`RecordError` for the first one if broken records are to stop the migration, and
    if none of several records has a snapshot.
    """
    names = await in_thread(_names, cache)
    infos: Infos = {}
    await in_thread(_note, infos, names, await snapshots.stat_many(names))
    await in_thread(_check_place, cache, infos, snapshots.snapshotter)
    await _look_up_unrecorded(infos, snapshots, await in_thread(_unrecorded_of_records, cache, infos))
    await in_thread(_Repair(cache, infos).run)
    await in_thread(drop, infos)


# -- looking up


def _names(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    """All records, as keys of snapshots; those that should have one first, for whoever takes a sample."""
    records = [record for record in stepping(checkpoint, cache.records) if not record.is_holder]
    records += [record for record in stepping(checkpoint, cache.records) if record.is_holder]
    return [record.id for record in stepping(checkpoint, records)]


def _note(checkpoint: Checkpoint, infos: Infos, names: Sequence[str], found: Sequence[SnapshotInfo | None]) -> None:
    for name, info in stepping(checkpoint, zip(names, found, strict=True)):
        infos[name] = info


def _check_place(checkpoint: Checkpoint, cache: Cache, infos: Infos, snapshotter: str) -> None:
    """In the wrong namespace or snapshotter every record would be dropped, which nobody wants who has not asked for it."""
    wanted = [record for record in stepping(checkpoint, cache.records) if not record.is_holder]
    if len(wanted) > 1 and cache.policy.max_dropped < 100 and not any(infos[record.id] for record in wanted):
        raise cache.error(wanted[0], no_snapshot_at_all(len(wanted), snapshotter))


def _unrecorded_of_records(checkpoint: Checkpoint, cache: Cache, infos: Infos) -> list[str]:
    owners = (record.equal_mutable for record in stepping(checkpoint, cache.records) if record.is_holder)
    return _unknown(checkpoint, infos, [*owners, *_parents(infos.values())])


def _parents(found: Iterable[SnapshotInfo | None]) -> list[str]:
    return [info.parent for info in found if info is not None and info.parent]


def _unknown(checkpoint: Checkpoint, infos: Infos, names: Iterable[str]) -> list[str]:
    unknown: dict[str, None] = {}
    for name in stepping(checkpoint, names):
        if name not in infos:
            unknown[name] = None
    return list(unknown)


async def _look_up_unrecorded(infos: Infos, snapshots: SnapshotStore, names: list[str]) -> None:
    """Snapshots that are needed and have no record, then their parents, and so on."""
    # One that exists goes along: a store that finds none of those asked for might take this for the wrong place.
    anchor = list(islice((name for name, info in infos.items() if info is not None), 1)) if names else []
    while names:
        found = await snapshots.stat_many([*anchor, *names])
        await in_thread(_note, infos, names, found[len(anchor) :])
        names = await in_thread(_unknown, infos, _parents(found))


# -- settling


@dataclass(frozen=True, slots=True)
class _Fate:
    """Why a record goes."""

    code: Code
    text: str
    action: Action = Action.DROPPED


class _Repair:
    def __init__(self, cache: Cache, infos: Infos) -> None:
        self._cache = cache
        self._infos = infos
        self._fates: dict[str, _Fate | None] = {}  # of the records that are settled; None for one that stays
        self._made: list[Record] = []
        self._drops = cache.policy.on_broken is OnBroken.DROP

    def run(self, checkpoint: Checkpoint) -> None:
        cache = self._cache
        for record in stepping(checkpoint, cache.records):
            if record.is_holder and self._infos[record.id] is not None and not record.deleted:
                self._finish(record)
        for record in stepping(checkpoint, cache.records):
            self._settle(record)
        self._drop(checkpoint)
        self._add_made()
        self._apply(checkpoint)

    def _drop(self, checkpoint: Checkpoint) -> None:
        cache = self._cache
        for record in stepping(checkpoint, cache.records):
            fate = self._fates[record.id]
            if fate is not None:
                cache.decide(fate.code, record, fate.action, fate.text)
                cache.dropped.add(record.id)
                self._free(record)
                del cache.by_id[record.id]
        cache.records = [record for record in stepping(checkpoint, cache.records) if record.id not in cache.dropped]

    def _free(self, record: Record) -> None:
        """Note what the record has kept: once it is gone, nobody would ever take v1's label off it.

        A snapshot below it without a record of its own is kept by nothing else: those that stay have records all the way down.
        """
        cache = self._cache
        if blob := record.blob or (record.blob_mapping or ("", ""))[0]:
            cache.freed_blobs.add(blob)
        name = record.id
        while (info := self._infos.get(name)) is not None and name not in cache.freed_snapshots:
            cache.freed_snapshots.add(name)
            name = info.parent

    def _add_made(self) -> None:
        cache, stay = self._cache, []
        for record in self._made:
            if self._fates[record.id] is None:
                stay.append(record)
                text = (
                    "its snapshot exists and other records are built on it, but its record is missing; a new record is written"
                )
                cache.decide(Code.RECORD_MISSING, record, Action.REPAIRED, text)
            else:
                del cache.by_id[record.id]
        if stay:
            cache.records = sorted([*cache.records, *stay], key=lambda record: to_bytes(record.id))

    def _finish(self, holder: Record) -> None:
        """A holder whose snapshot exists: only the note that it is finalised is missing."""
        owner = holder.equal_mutable
        if self._drops:
            text = f"it says that record {printable(owner)} still holds its data, but it has a snapshot of its own"
            self._fates[holder.id] = _Fate(Code.HOLDER_FINALISED, text)
            return
        text = (
            "the daemon was killed while it finalised this record; the snapshot is complete, so the reference "
            f"to {owner} is removed"
        )
        self._cache.decide(Code.HOLDER_FINALISED, holder, Action.REPAIRED, printable(text))
        holder.equal_mutable = ""
        holder.edit(keys.EQUAL_MUTABLE, b"")
        if owner in self._cache.by_id and self._infos.get(owner) is None and not self._cache.by_id[owner].is_holder:
            text = f"its snapshot now belongs to record {printable(holder.id)}; the daemon was about to remove this record"
            self._fates[owner] = _Fate(Code.MUTABLE_DEAD, text, Action.REPAIRED)

    def _settle(self, record: Record) -> None:
        """Settle the record and all that it needs."""
        way: list[Record] = []
        places: dict[str, int] = {}
        fate: _Fate | None = None
        while record.id not in self._fates:
            if record.id in places:
                self._drop_cycle(way[places[record.id] :])
                del way[places[record.id] :]
                break
            places[record.id] = len(way)
            way.append(record)
            fate = self._own_fault(record)
            needed = None if fate else self._needed(record)
            if isinstance(needed, Record):
                record = needed
                continue
            self._fates[record.id] = fate or needed
            way.pop()
        for link in reversed(way):
            fate = self._fates[record.id]
            self._fates[link.id] = fate and _because_of(link, record, fate)
            record = link

    def _drop_cycle(self, cycle: list[Record]) -> None:
        for link in cycle:
            self._fates[link.id] = _Fate(Code.PARENT_CYCLE, "it is its own ancestor: its parents form a cycle")

    def _own_fault(self, record: Record) -> _Fate | None:
        malformed = self._cache.malformed.get(record.id)
        if malformed is not None and self._drops:
            return _Fate(Code.VALUE_MALFORMED, malformed)
        if record.deleted:
            return _Fate(Code.MARKED_DELETED, "the daemon had begun to delete it", Action.DELETED)
        if not record.is_holder and self._infos[record.id] is None:
            return _Fate(Code.SNAPSHOT_MISSING, "it has no snapshot: its data is gone, or it never had any")
        if gojson.to_valid(record.id) != record.id:
            return _Fate(Code.ID_UNUSABLE, "its id is not UTF-8, and BuildKit can't write a reference to such an id")
        return None

    def _needed(self, record: Record) -> Record | _Fate | None:
        """The record that this one needs, ``None`` if it needs none, or why it goes."""
        if record.is_holder:
            name, what, code = record.equal_mutable, "the record that holds its data", Code.MUTABLE_MISSING
        else:
            info = self._infos[record.id]
            name, what, code = info.parent if info else "", "its parent", Code.PARENT_MISSING
        if not name:
            return None
        found = self._cache.by_id.get(name)
        if found is not None:
            return found
        info = self._infos[name]
        if info is None:
            return _Fate(code, f"{what}, {printable(name)}, does not exist, nor does a snapshot of that name")
        if self._drops:
            return _Fate(code, f"{what}, {printable(name)}, does not exist, though a snapshot of that name does")
        return self._make(name)

    def _make(self, name: str) -> Record:
        """A record for a snapshot that has none."""
        record = Record(name)
        record.edit(keys.DESCRIPTION, gojson.encode_string(_RECOVERED))
        self._cache.by_id[name] = record
        self._made.append(record)
        return record

    # -- what stays

    def _apply(self, checkpoint: Checkpoint) -> None:
        for record in stepping(checkpoint, self._cache.records):
            if not record.is_holder:
                info = self._infos[record.id]
                assert info is not None
                if info.kind is Kind.COMMITTED:
                    record.changes |= Changes.COMMITTED
                self._set_parent(record, info.parent)
        for record in stepping(checkpoint, self._cache.records):
            way = []  # a holder whose data is another holder's: no BuildKit makes that, but it must not take for ever
            while record.is_holder and not record.changes & Changes.COMMITTED:
                record.changes |= Changes.COMMITTED | Changes.PARENT
                way.append(record)
                record = self._cache.by_id[record.equal_mutable]  # noqa: PLW2901
            for holder in way:
                self._set_parent(holder, record.parent)

    def _set_parent(self, record: Record, parent: str) -> None:
        record.changes |= Changes.SNAPSHOT
        if record.parent not in ("", parent):
            text = (
                f"it names {printable(record.parent)} as its parent, but the parent of its snapshot is "
                f"{printable(parent) or 'none'}"
            )
            self._cache.decide(Code.PARENT_WRONG, record, Action.REPAIRED, text)
            record.changes |= Changes.PARENT
        record.parent = parent
        if parent:
            record.changes |= Changes.PARENT


def _because_of(record: Record, needed: Record, fate: _Fate) -> _Fate:
    if record.is_holder and fate.action is Action.DELETED:
        text = f"the daemon had begun to delete {printable(needed.id)}, the record that holds its data"
        return _Fate(Code.MARKED_DELETED, text, Action.DELETED)
    if record.is_holder:
        text = f"it is not finalised, and the record that holds its data, {printable(needed.id)}, is dropped"
        return _Fate(Code.MUTABLE_MISSING, text)
    return _Fate(Code.PARENT_DROPPED, f"it is built on {printable(needed.id)}, which is dropped")
