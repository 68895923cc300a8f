"""The pipeline: read, resolve, blobs, chains, leases, build, and then the tail.

Nothing changes in a store before the tail, and the tail begins only when everything that can fail without side effects has
succeeded.  Each of its steps can be repeated, so a run after an interruption completes what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit.record import Changes, Record
from asyncmig.concurrency import close_in_thread, in_thread, stepping
from asyncmig.errors import (
    AsyncmigError,
    DatabaseError,
    DropLimitError,
    IncompleteMigrationError,
    StoreError,
    UncertainCommitError,
    counted,
    printable,
)
from asyncmig.migration.blobs import find_blobs
from asyncmig.migration.cache import Cache
from asyncmig.migration.chains import compute_chains
from asyncmig.migration.decisions import Action, Code, OnBroken
from asyncmig.migration.journal import Journal, JournalFile, fingerprint
from asyncmig.migration.progress import Stage
from asyncmig.migration.protect import LeasePlan, PlannedLeases, plan_leases, protect, verify
from asyncmig.migration.publish import NewDatabase, build
from asyncmig.migration.release import ReleasePlan, Vanished, plan_release, release
from asyncmig.migration.repair import resolve_and_repair
from asyncmig.migration.report import Outcome
from asyncmig.migration.resolve import resolve
from asyncmig.migration.tail import run_tail
from asyncmig.stores.ports import GC_ROOT, Kind, Lease, SnapshotInfo, Stores

PREPARING = (Stage.READ, Stage.RESOLVE, Stage.BLOBS, Stage.CHAINS, Stage.LEASES)
"""The stages that change nothing."""


class Pipeline:
    """One migration of one cache whose database is open and whose stores can be reached.

    ``target`` is the path of the v2 database.
    """

    def __init__(self, cache: Cache, stores: Stores, target: str) -> None:
        self.cache = cache
        self.stores = stores
        self.target = target
        self.reporter = cache.reporter
        self.leases = LeasePlan(PlannedLeases({}, ""))
        self.release = ReleasePlan()
        self._new: NewDatabase | None = None
        self._file = JournalFile(target)
        self._earlier: Journal | None = None  # of an interrupted run
        self._read_count = self._snapshots = 0  # records as they were read, and how many of them are looked up among snapshots
        self._directories = (0, 0)  # how many snapshots of records have no directory, and how many there are
        self._orphans = 0  # snapshots with v1's label, views aside, where there are no records at all
        self._doubtful: Sequence[Lease] = ()  # leases that are to be read back
        self._changed = False  # whether a store may have been changed

    # -- what changes nothing

    async def prepare(self) -> None:
        """Compute everything, change nothing.

        Raises :class:`DatabaseError`, :class:`RecordError` or :class:`StoreError`; when cancelled, it ends at once.
        """
        cache, stores = self.cache, self.stores
        with self.reporter.stage(Stage.READ):
            await in_thread(self._read)
        with self.reporter.stage(Stage.RESOLVE, self._snapshots):
            if cache.semantics.repairs:
                await resolve_and_repair(cache, stores.snapshots)
            else:
                await resolve(cache, stores.snapshots)
        with self.reporter.stage(Stage.BLOBS):
            await find_blobs(cache, stores.content)
        with self.reporter.stage(Stage.CHAINS):
            await in_thread(compute_chains, cache)
        with self.reporter.stage(Stage.LEASES):
            await in_thread(self._read_journal)
            self.leases = await plan_leases(cache, stores, self._earlier)
            self.release = await plan_release(cache, stores)
            if cache.semantics.repairs:
                await self._look_at_directories()
            if not self._read_count and not stores.snapshots.shared:  # otherwise they may be anybody's
                rooted = await stores.snapshots.list_all(rooted=True)
                self._orphans = await in_thread(_without_views, rooted)
            await in_thread(self._count)

    def _read(self, checkpoint: Checkpoint) -> None:
        cache = self.cache
        on_malformed = self._malformed if cache.semantics.repairs else None
        cache.records = cache.database.read(checkpoint=checkpoint, progress=self.reporter.advance, on_malformed=on_malformed)
        self._read_count = len(cache.records)
        for record in stepping(checkpoint, cache.records):
            cache.by_id[record.id] = record
            self._snapshots += cache.semantics.repairs or not record.is_holder

    def _malformed(self, record: Record, name: bytes, why: str) -> None:
        cache = self.cache
        text = f"key {printable(name.decode(errors='replace'))}: {why}"
        cache.malformed[record.id] = text
        if cache.policy.on_broken is not OnBroken.DROP:
            record.edit(name, b"")
            cache.decide(Code.VALUE_MALFORMED, record, Action.REPAIRED, f"{text}; the value is cleared")

    def _read_journal(self, checkpoint: Checkpoint) -> None:
        self._earlier = self._file.read(checkpoint)
        if self._earlier is not None and not self._earlier.is_complete:
            text = "an earlier run was interrupted while it changed the stores; this migration completes it"
            self.cache.reporter.note("interrupted-before", text)

    async def _look_at_directories(self) -> None:
        """The databases don't tell that the disk with the snapshots is not mounted; the directories do."""
        names = await in_thread(_own_snapshots, self.cache)
        missing = await self.stores.snapshots.missing_directories(names)
        if missing:
            self._directories = len(missing), len(names)
            text = (
                f"{len(missing):,} of {counted(len(names), 'snapshot')} have no directory on disk, "
                f"{printable(next(iter(missing.values())))} for example"
            )
            self.reporter.note("directories-missing", text)

    def _count(self, checkpoint: Checkpoint) -> None:
        cache, counts = self.cache, self.cache.report.counts
        counts.found, counts.records = self._read_count, len(cache.records)
        for record in stepping(checkpoint, cache.records):
            counts.holders += record.is_holder
            counts.blobs += bool(record.blob)
            counts.chains += bool(record.changes & Changes.CHAIN)
        for decision in cache.report.decisions:
            counts.repaired += decision.action is Action.REPAIRED
            counts.deleted += decision.action is Action.DELETED
            counts.dropped += decision.action is Action.DROPPED
        counts.leases = len(self.leases.leases)
        counts.snapshots_labelled, counts.blobs_labelled = len(self.release.snapshot_roots), len(self.release.blob_roots)
        if not self._read_count:
            text = "metadata.db has no records; if this cache was in use, this is not its database"
            cache.reporter.note("no-records", text)
        elif counts.blobs and cache.semantics.caveat:
            cache.reporter.note("caveat", f"{counted(counts.blobs, 'layer')} with a blob: {cache.semantics.caveat}")

    def check_limit(self) -> None:
        """Raise :class:`DropLimitError` if more of the cache would be lost than the caller allows: records, or their blobs.

        A part of it that is empty where the others show that there was a cache counts as lost altogether.
        """
        cache = self.cache
        dropped, lost, limit = cache.report.counts.dropped, cache.lost_blobs, cache.policy.max_dropped
        path = printable(cache.database.path)
        if dropped * 100 > limit * self._read_count:
            first = next(d for d in cache.report.decisions if d.action is Action.DROPPED)
            raise DropLimitError(
                f"{path}: {dropped} of {self._read_count} records "
                f"({dropped * 100 / self._read_count:.1f} %) would be dropped; the limit is {limit:g} % (--max-dropped). "
                f"'asyncmig plan' shows all of them. The first is {printable(first.record)}: {first.text}"
            )
        if lost * 100 > limit * cache.wanted_blobs:
            raise DropLimitError(
                f"{path}: {lost} of {counted(cache.wanted_blobs, 'record')} with a blob "
                f"({lost * 100 / cache.wanted_blobs:.1f} %) "
                f"would lose it, because the content store does not have it; the limit is {limit:g} % (--max-dropped). "
                "Is the volume with the content store mounted?"
            )
        missing, snapshots = self._directories
        if missing * 100 > limit * snapshots:
            raise DropLimitError(
                f"{path}: {missing} of {counted(snapshots, 'snapshot')} ({missing * 100 / snapshots:.1f} %) have "
                "no directory on "
                f"disk; the limit is {limit:g} % (--max-dropped). Is the volume with the snapshots mounted?"
            )
        if cache.semantics.repairs and limit < 100 and not self._read_count and self._orphans:
            raise DropLimitError(
                f"{path}: has no records, but {counted(self._orphans, 'snapshot')} in the stores carry v1's label {GC_ROOT}. "
                "A power cut may have emptied the file: restore it from a backup. --max-dropped 100 migrates it as it is"
            )

    def forget(self) -> None:
        """Drop what was computed.  Blocking: for a worker thread, so that an event loop does not wait for it in the end."""
        self.cache.forget_records(no_checkpoint)
        self.leases.forget()
        self.release.forget()

    # -- what changes the stores

    async def migrate(self) -> None:
        """Build the new database, then protect, release and publish in the order of the semantics.

        A cancellation while the database is built takes effect at once and leaves nothing behind.  After that it takes
        effect when the migration is complete.  Raises :class:`IncompleteMigrationError` if the tail fails after it has
        changed something; otherwise nothing has changed: :class:`DropLimitError` if too much would be dropped.
        """
        self.check_limit()
        try:
            with self.reporter.stage(Stage.BUILD, len(self.cache.records)):
                await in_thread(self._build)
            await run_tail(self._tail, self.reporter, Outcome.MIGRATED)
        finally:
            await close_in_thread(self._close)

    def _build(self, checkpoint: Checkpoint) -> None:
        # Kept here rather than returned: when the caller is cancelled in the last moment, a result would be lost.
        self._new = build(checkpoint, self.cache, self.target, self.reporter.advance)
        self.cache.forget_records(checkpoint)

    def _close(self) -> None:
        new, self._new = self._new, None
        if new is not None:
            new.close()

    async def _tail(self) -> None:
        stage = self.cache.semantics.tail[0]
        try:
            await in_thread(self._write_journal)
            for stage in self.cache.semantics.tail:
                with self.reporter.stage(stage, self._total(stage)):
                    await self._tail_stage(stage)
            await in_thread(lambda _: self._file.note_complete())
        except Exception as error:
            if self._changed or isinstance(error, UncertainCommitError) or not isinstance(error, AsyncmigError):
                raise IncompleteMigrationError(stage, error) from error
            if self._earlier is None:
                try:
                    await in_thread(lambda _: self._file.remove())
                except DatabaseError:
                    raise IncompleteMigrationError(stage, error) from error
            raise

    def _write_journal(self, checkpoint: Checkpoint) -> None:
        assert self._new is not None
        cache, plan = self.cache, self.leases
        journal = Journal(
            semantics=cache.semantics.name,
            namespace=cache.report.namespace,
            snapshotter=self.stores.snapshots.snapshotter,
            place=cache.place,
            v1=fingerprint(cache.database.path, checkpoint),
            v2=fingerprint(self._new.path, checkpoint),
            leases={lease_id: plan.before.get(lease_id) for lease_id in plan.leases.ids},
            foreign=set(plan.left_alone),
            snapshots=dict(self.release.snapshot_roots),
            blobs=dict(self.release.blob_roots),
        )
        if self._earlier is not None:
            journal.take_over(self._earlier)
        self._file.write(journal, checkpoint)

    def _total(self, stage: Stage) -> int | None:
        match stage:
            case Stage.PROTECT:
                return len(self.leases.leases)
            case Stage.VERIFY:
                return len(self._doubtful)
            case Stage.RELEASE:
                return len(self.release.snapshots) + len(self.release.blobs)
            case _:
                return None

    async def _tail_stage(self, stage: Stage) -> None:
        match stage:
            case Stage.PROTECT:
                await self._protect()
            case Stage.VERIFY:
                await verify(self._doubtful, self.stores.leases)
            case Stage.RELEASE:
                self._report_vanished(await release(self.cache.report.counts, self.stores, self.release, self.cache.semantics))
            case Stage.PUBLISH:
                await in_thread(self._publish)
            case _:
                raise AssertionError(stage)

    async def _protect(self) -> None:
        if not self.stores.leases.atomic:
            self._changed = True
        self._doubtful = await protect(self.cache, self.leases, self.stores.leases)
        self._changed = True

    def _publish(self, _: Checkpoint) -> None:
        assert self._new is not None
        self._new.publish()

    def _report_vanished(self, vanished: Vanished) -> None:
        assert self._new is not None
        if vanished.blobs and not self._new.published:
            # The next run does without it.  Later there is nothing to be mended, and a rerun would fail for ever.
            raise StoreError(
                f"somebody else has removed blob {printable(vanished.blobs[0])} from the content store while the "
                "migration ran; "
                "run it again, and the record does without the blob"
            )
        if vanished.snapshots or vanished.blobs:
            leases = self.leases
            vanished.report(self.cache, {*leases.left_alone, *leases.leases.ids})


def _own_snapshots(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    return [record.id for record in stepping(checkpoint, cache.records) if not record.is_holder]


def _without_views(checkpoint: Checkpoint, infos: Sequence[SnapshotInfo]) -> int:
    return sum(1 for info in stepping(checkpoint, infos) if info.kind is not Kind.VIEW)
