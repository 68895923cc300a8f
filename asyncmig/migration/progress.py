"""What a run tells while it runs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncmig.migration.report import Report


class Stage(StrEnum):
    """The stages, in the order in which they first may run."""

    OPEN = "open"
    READ = "read"
    RESOLVE = "resolve"
    BLOBS = "blobs"
    CHAINS = "chains"
    LEASES = "leases"
    BUILD = "build"
    PROTECT = "protect"
    VERIFY = "verify"
    RELEASE = "release"
    PUBLISH = "publish"
    # of a rollback
    RESTORE = "restore"
    WITHDRAW = "withdraw"
    UNPROTECT = "unprotect"


class Progress:
    """Receives what happens; subclass it and override what you want.

    The methods are called from worker threads as well as from the event loop, never two at a time.  They must be quick.  The
    first exception that one raises ends the reporting, not the run; the report has a note of it.
    """

    def begin(self, stages: tuple[Stage, ...]) -> None:
        """The run will go through these stages, in this order.  Called once, before the first of them."""

    def stage(self, stage: Stage, total: int | None) -> None:
        """``stage`` begins.  ``total`` is the number of items it will deal with, ``None`` if that is not known."""

    def advance(self, count: int) -> None:
        """``count`` more items of the running stage are done."""

    def end_stage(self, stage: Stage) -> None:
        """``stage`` has ended well.  Of a known total, all items are done."""

    def uncancellable(self) -> None:
        """The tail begins: from here on a cancellation takes effect when the migration is complete."""

    def cancel_deferred(self) -> None:
        """A native cancellation arrived in the tail and is kept until the end.

        A cancelled anyio or trio scope is not noticed in the tail: it reports itself when the tail has ended.
        """

    def ended(self, report: Report) -> None:
        """A migration, a plan or a rollback has ended well, and this is its report.  Called once, and last.

        It is called at the end of the tail, before a cancellation that has arrived there is raised.  A caller that is cancelled
        gets no report in another way: the next run finds nothing left to do, and counts nothing.
        """
