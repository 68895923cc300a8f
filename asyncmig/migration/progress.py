"""What a migration tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import ParamSpec

P = ParamSpec("P")


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

    The methods are called from worker threads as well as from the event loop, never two at a time.  They must be quick.  An
    exception ends the reporting, not the migration.
    """

    def stage(self, stage: Stage, total: int | None) -> None:
        """``stage`` begins.  ``total`` is the number of items it will deal with, ``None`` if that is not known."""

    def advance(self, count: int) -> None:
        """``count`` more items of the running stage are done."""

    def uncancellable(self) -> None:
        """The tail begins: from here on a cancellation takes effect when the migration is complete."""

    def cancel_deferred(self) -> None:
        """A native cancellation arrived in the tail and is kept until the end.

        A cancelled anyio or trio scope is not noticed in the tail: it reports itself when the tail has ended.
        """


class GuardedProgress(Progress):
    """Passes everything on until that raises, then nothing any more.

    A closed terminal must not end a migration half-way.
    """

    def __init__(self, inner: Progress) -> None:
        self._inner = inner

    def stage(self, stage: Stage, total: int | None) -> None:
        """Pass it on."""
        self._pass_on(self._inner.stage, stage, total)

    def advance(self, count: int) -> None:
        """Pass it on."""
        self._pass_on(self._inner.advance, count)

    def uncancellable(self) -> None:
        """Pass it on."""
        self._pass_on(self._inner.uncancellable)

    def cancel_deferred(self) -> None:
        """Pass it on."""
        self._pass_on(self._inner.cancel_deferred)

    def _pass_on(self, method: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            self._inner = Progress()
