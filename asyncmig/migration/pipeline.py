"""The pipeline: read, resolve, blobs, chains, build, and then the tail.

Nothing changes in a store before the tail, and the tail begins only when everything that can fail without side effects has
succeeded.  Each of its steps can be repeated, so a run after an interruption completes what is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.record import Changes
from asyncmig.concurrency import in_thread, run_uncancellable
from asyncmig.errors import AsyncmigError, IncompleteMigrationError, UncertainCommitError
from asyncmig.migration.blobs import find_blobs
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.chains import compute_chains
from asyncmig.migration.journal import Journal
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.protect import LeasePlan, plan_leases, protect, verify
from asyncmig.migration.publish import NewDatabase, build
from asyncmig.migration.release import ReleasePlan, plan_release, release
from asyncmig.migration.report import Notice
from asyncmig.migration.resolve import resolve
from asyncmig.stores.ports import Lease, Stores


class Pipeline:
    """One migration of one cache whose database is open and whose stores can be reached.

    ``target`` is the path of the v2 database.
    """

    def __init__(self, cache: Cache, stores: Stores, target: str, progress: Progress) -> None:
        self.cache = cache
        self.stores = stores
        self.target = target
        self.progress = progress
        self._new: NewDatabase | None = None
        self._journal = Journal(target)
        self._plan = LeasePlan([], [])
        self._release = ReleasePlan([], [], [])
        self._snapshots = 0  # records that have one of their own
        self._doubtful: list[Lease] = []  # leases that are to be read back
        self._changed = False  # whether a store may have been changed

    async def prepare(self) -> None:
        """Compute everything, change nothing.

        Raises :class:`DatabaseError`, :class:`RecordError` or :class:`StoreError`; when cancelled, it ends at once.
        """
        cache = self.cache
        async with self._stage(Stage.READ):
            await in_thread(self._read)
        async with self._stage(Stage.RESOLVE, self._snapshots):
            await resolve(cache, self.stores.snapshots)
            views = await self._find_views()
        async with self._stage(Stage.BLOBS):
            await find_blobs(cache, self.stores.content)
        async with self._stage(Stage.CHAINS):
            await in_thread(compute_chains, cache)
            await in_thread(self._count)
        async with self._stage(Stage.LEASES):
            self._plan = await plan_leases(cache, self.stores, await in_thread(self._read_journal))
            self._release = await in_thread(plan_release, cache, views)

    async def _find_views(self) -> list[str]:
        snapshots = self.stores.snapshots
        if snapshots.shared and not self._snapshots:
            return []  # no snapshot has shown that this is the right place, so these may be anybody's
        return await snapshots.views()

    def _read_journal(self, _: Checkpoint) -> frozenset[str] | None:
        found = self._journal.read()
        if found is not None:
            text = "an earlier run was interrupted while it made leases; the migration completes them"
            self.cache.report.notices.append(Notice("interrupted-before", "", text))
        return found

    def _read(self, checkpoint: Checkpoint) -> None:
        cache = self.cache
        cache.records = cache.database.read(checkpoint=checkpoint, progress=self.progress.advance)
        for record in stepping(checkpoint, cache.records):
            cache.by_id[record.id] = record
            self._snapshots += not record.is_holder

    def _count(self, checkpoint: Checkpoint) -> None:
        counts = self.cache.report.counts
        counts.records = len(self.cache.records)
        for record in stepping(checkpoint, self.cache.records):
            counts.holders += record.is_holder
            counts.blobs += bool(record.blob)
            counts.chains += bool(record.changes & Changes.CHAIN)
        note = self.cache.report.notices.append
        if not counts.records:
            note(
                Notice("no-records", "", "the database has no records; if this cache was in use, the file is not its database")
            )
        elif counts.blobs and self.cache.semantics.caveat:
            note(Notice("caveat", "", f"{counts.blobs} layers with a blob: {self.cache.semantics.caveat}"))

    async def migrate(self) -> None:
        """Build the new database, then protect, release and publish in the order of the semantics.

        A cancellation while the database is built takes effect at once and leaves nothing behind.  After that it takes
        effect when the migration is complete.  Raises :class:`IncompleteMigrationError` if the tail fails after it has
        changed something; otherwise nothing has changed.
        """
        try:
            async with self._stage(Stage.BUILD, len(self.cache.records)):
                await in_thread(self._build)
            self.progress.uncancellable()
            await run_uncancellable(self._tail, on_cancel=self.progress.cancel_deferred)
        finally:
            await run_uncancellable(partial(in_thread, self._close))

    def _build(self, checkpoint: Checkpoint) -> None:
        # Kept here rather than returned: when the caller is cancelled in the last moment, a result would be lost.
        self._new = build(checkpoint, self.cache, self.target, self.progress.advance)

    def _close(self, _: Checkpoint) -> None:
        if self._new is not None:
            self._new.close()

    def _publish(self, _: Checkpoint) -> None:
        assert self._new is not None
        self._journal.remove()
        self._new.publish()

    async def _tail(self) -> None:
        for stage in self.cache.semantics.tail:
            try:
                async with self._stage(stage, self._total(stage)):
                    await self._tail_stage(stage)
            except Exception as error:
                if self._changed or isinstance(error, UncertainCommitError) or not isinstance(error, AsyncmigError):
                    raise IncompleteMigrationError(stage, error) from error
                raise

    def _total(self, stage: Stage) -> int | None:
        match stage:
            case Stage.PROTECT:
                return len(self._plan.leases)
            case Stage.VERIFY:
                return len(self._doubtful)
            case Stage.RELEASE:
                return len(self._release.snapshots) + len(self._release.blobs)
            case _:
                return None

    async def _tail_stage(self, stage: Stage) -> None:
        match stage:
            case Stage.PROTECT:
                await self._protect()
            case Stage.VERIFY:
                await verify(self._doubtful, self.stores.leases)
            case Stage.RELEASE:
                await release(self.cache, self.stores, self._release)
            case Stage.PUBLISH:
                await in_thread(self._publish)
            case _:
                raise AssertionError(stage)

    async def _protect(self) -> None:
        if not self.stores.leases.atomic:
            if not self.cache.semantics.completes_existing_leases:
                await in_thread(lambda _: self._journal.write(self._plan.left_alone))
            self._changed = True
        self._doubtful = await protect(self.cache, self._plan, self.stores.leases)
        self._changed = True

    @asynccontextmanager
    async def _stage(self, stage: Stage, total: int | None = None) -> AsyncIterator[None]:
        self.progress.stage(stage, total)
        with self.cache.report.timed(stage):
            yield
