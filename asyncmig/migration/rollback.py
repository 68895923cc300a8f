"""Going back: the stores as they were before the migration, the new database out of the way.

In the reverse order of a migration, with the same rule: nothing loses one protection before it has the other.  Labels first,
then the new database goes aside, then the leases.  Each step can be repeated; the journal goes last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Collection

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.files import sync_directory
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import DatabaseError, IncompleteRollbackError, UncertainCommitError, counted, reason
from asyncmig.migration.journal import Journal, JournalFile, Resources
from asyncmig.migration.progress import Stage
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.reporter import Reporter
from asyncmig.migration.tail import run_tail
from asyncmig.stores.ports import GC_ROOT, Lease, Stores

ASIDE = ".rolled-back"
"""What is added to the name of a database that was moved aside."""


class Rollback:
    """One rollback, from the journal of a migration.

    ``target`` is the path of the v2 database, which may not be there.  ``needed``: the snapshots and blobs that records need,
    if an old daemon has worked with the cache since; the labels of others are not restored, for nobody would ever remove them.
    """

    def __init__(
        self,
        journal: Journal,
        target: str,
        stores: Stores,
        reporter: Reporter[Report],
        *,
        needed: tuple[Collection[str], Collection[str]] | None = None,
    ) -> None:
        self._journal = journal
        self._snapshots = list(journal.snapshots.items())
        self._blobs = list(journal.blobs.items())
        if needed is not None:
            self._snapshots = [(name, label) for name, label in self._snapshots if name in needed[0]]
            self._blobs = [(digest, label) for digest, label in self._blobs if digest in needed[1]]
        self._file = JournalFile(target)
        self._target = target
        self._stores = stores
        self._reporter = reporter
        self._counts = reporter.result.counts

    def count(self, _: Checkpoint) -> None:
        """Report what is to be done."""
        counts, journal = self._counts, self._journal
        counts.leases = sum(1 for before in journal.leases.values() if before is None)
        counts.snapshots_labelled, counts.blobs_labelled = len(self._snapshots), len(self._blobs)
        left_out = len(journal.snapshots) + len(journal.blobs) - len(self._snapshots) - len(self._blobs)
        if left_out:
            text = "an old daemon has changed metadata.db since the migration, and no record needs what carried them any more"
            self._reporter.note("labels-left-out", f"{counted(left_out, 'label')} not restored: {text}")

    async def run(self) -> None:
        """Do it.  Not interrupted by any cancellation.  Raises :class:`IncompleteRollbackError`."""
        await run_tail(self._run, self._reporter, Outcome.ROLLED_BACK)

    async def _run(self) -> None:
        # A change already: from now on no migration completes what an earlier one has left.
        try:
            await in_thread(lambda _: self._file.note_rollback())
        except UncertainCommitError as error:
            raise IncompleteRollbackError(Stage.RESTORE, error) from error
        await self._step(Stage.RESTORE, self._restore_labels)
        await self._step(Stage.WITHDRAW, lambda: in_thread(self._withdraw))
        await self._step(Stage.UNPROTECT, self._remove_leases)

    async def _step(self, stage: Stage, step: Callable[[], Awaitable[None]]) -> None:
        try:
            with self._reporter.stage(stage):
                await step()
        except Exception as error:
            raise IncompleteRollbackError(stage, error) from error

    async def _restore_labels(self) -> None:
        snapshots = await self._stores.snapshots.set_label_many(self._snapshots, GC_ROOT)
        blobs = await self._stores.content.set_label_many(self._blobs, GC_ROOT)
        self._counts.labels_restored = sum(snapshots) + sum(blobs)
        lost = len(snapshots) + len(blobs) - self._counts.labels_restored
        if lost:
            text = f"{counted(lost, 'label')} not restored: somebody else has removed the snapshot or blob that carried it"
            self._reporter.note("vanished", text)

    def _withdraw(self, _: Checkpoint) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._target, self._target + ASIDE)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._target + ".tmp")
        except OSError as error:
            raise DatabaseError(self._target, f"cannot move it aside: {reason(error)}") from error
        sync_directory(os.path.dirname(self._target))

    async def _remove_leases(self) -> None:
        ours, completed, before = await in_thread(self._leases)
        added = await in_thread(self._added, before, await self._stores.leases.list_many(completed))
        await self._stores.leases.remove_resources_many(added)
        existing = await in_thread(_existing, await self._stores.leases.list_many(ours))
        await self._stores.leases.delete_many(existing)
        self._counts.leases_deleted = len(existing)
        await in_thread(lambda _: self._file.remove())

    def _leases(self, checkpoint: Checkpoint) -> tuple[list[str], list[str], list[Resources]]:
        """The leases that the migration made, and those that it completed, with what these held before."""
        ours, completed, before = [], [], []
        for lease_id, held in stepping(checkpoint, self._journal.leases.items()):
            if held is None:
                ours.append(lease_id)
            else:
                completed.append(lease_id)
                before.append(held)
        return ours, completed, before

    def _added(self, checkpoint: Checkpoint, before: list[Resources], found: list[Lease | None]) -> list[Lease]:
        """What the migration has added to leases that were there before."""
        added = []
        for held, lease in stepping(checkpoint, zip(before, found, strict=True)):
            resources = tuple(resource for resource in lease.resources if resource not in held) if lease else ()
            if lease and resources:
                added.append(Lease(lease.id, {}, resources))
        return added


def _existing(checkpoint: Checkpoint, found: list[Lease | None]) -> list[str]:
    return [lease.id for lease in stepping(checkpoint, found) if lease is not None]
