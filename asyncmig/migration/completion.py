"""Completing a migration that was interrupted after it had published its database: only the labels are left."""

from __future__ import annotations

import os

from asyncmig.bolt.files import sync_directory
from asyncmig.concurrency import in_thread
from asyncmig.errors import IncompleteMigrationError
from asyncmig.migration.journal import Journal, JournalFile
from asyncmig.migration.progress import Stage
from asyncmig.migration.release import ReleasePlan, release
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.reporter import Reporter
from asyncmig.migration.semantics import SEMANTICS, UPSTREAM
from asyncmig.migration.tail import run_tail
from asyncmig.stores.ports import Stores

_INTERRUPTED = (
    "an earlier run was interrupted after it had published the new database; this run has removed the labels that were left"
)


async def complete(journal: Journal, file: JournalFile, stores: Stores, reporter: Reporter[Report]) -> None:
    """Remove the labels that the journal names.

    They are safe to go once the database's name is durable: it was published after all leases had been verified, and what a
    newer daemon has changed since is protected by its own leases.  What is not there any more, that daemon has removed.

    Not interrupted by any cancellation.  Raises :class:`IncompleteMigrationError`.
    """
    plan = await in_thread(lambda _: ReleasePlan(snapshots=list(journal.snapshots), blobs=list(journal.blobs)))

    async def work() -> None:
        # The run before was perhaps killed, or failed, before the name of the new database was on the disk.
        await in_thread(lambda _: sync_directory(os.path.dirname(file.path)))
        with reporter.stage(Stage.RELEASE, len(plan.snapshots) + len(plan.blobs)):
            semantics = SEMANTICS.get(journal.semantics, UPSTREAM)
            await release(reporter.result.counts, stores, plan, semantics)
        await in_thread(lambda _: file.note_complete())
        reporter.note("interrupted-before", _INTERRUPTED)

    try:
        await run_tail(work, reporter, Outcome.COMPLETED)
    except Exception as error:
        raise IncompleteMigrationError(Stage.RELEASE, error) from error
