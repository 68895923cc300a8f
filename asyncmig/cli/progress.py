"""How the command line shows progress, on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import click

from asyncmig.migration.progress import Progress, Stage

_DEFERRED = "interrupted: this can't stop here without leaving work half done; it will end soon, please wait"


DESCRIPTIONS = {
    Stage.OPEN: "locking and checking the databases",
    Stage.READ: "reading the records",
    Stage.RESOLVE: "looking up snapshots",
    Stage.BLOBS: "looking up blobs",
    Stage.CHAINS: "computing chain IDs",
    Stage.LEASES: "looking up leases",
    Stage.BUILD: "writing the new database",
    Stage.PROTECT: "making leases (not interruptible)",
    Stage.VERIFY: "reading leases back",
    Stage.RELEASE: "removing v1 labels (not interruptible)",
    Stage.PUBLISH: "publishing the new database",
    Stage.RESTORE: "putting the v1 labels back (not interruptible)",
    Stage.WITHDRAW: "moving the new database aside",
    Stage.UNPROTECT: "deleting leases (not interruptible)",
}


@contextmanager
def show_progress(kind: str) -> Iterator[CommandProgress]:
    """The progress of the given kind: ``auto``, ``plain``, ``json`` or ``none``."""
    if kind == "auto":
        kind = "bar" if sys.stderr is not None and sys.stderr.isatty() else "none"
    if kind == "bar":
        with _bar() as progress:
            yield progress
    else:
        yield {"plain": PlainProgress, "json": JsonProgress, "none": CommandProgress}[kind]()


class CommandProgress(Progress):
    """Says why an interrupt seems to be ignored, and nothing else."""

    _in_tail = False
    _told = False

    def uncancellable(self) -> None:
        """Remember that nothing can be interrupted any more."""
        self._in_tail = True

    def interrupted(self) -> None:
        """A signal has arrived."""
        if self._in_tail and not self._told:
            self._told = True
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                self.cancel_deferred()

    def cancel_deferred(self) -> None:
        """Tell why nothing stops."""
        click.echo(_DEFERRED, err=True)


class PlainProgress(CommandProgress):
    """A line for each stage."""

    def stage(self, stage: Stage, total: int | None) -> None:
        """Print the stage."""
        click.echo(f"{stage}: {DESCRIPTIONS[stage]}" + ("" if total is None else f" ({total})"), err=True)


class JsonProgress(CommandProgress):
    """A JSON object a line: an event for each stage, and at most ten a second for what is done of it."""

    _done = 0
    _shown = 0.0
    _stage: Stage | None = None

    def _emit(self, **event: object) -> None:
        self._shown = monotonic()
        click.echo(json.dumps(event), err=True)

    def stage(self, stage: Stage, total: int | None) -> None:
        """Print the beginning of a stage."""
        self._stage, self._done = stage, 0
        self._emit(event="stage", stage=stage, total=total)

    def advance(self, count: int) -> None:
        """Print how far the stage is."""
        self._done += count
        if self._done % 256 == 0 and monotonic() - self._shown > 0.1:
            self._emit(event="progress", stage=self._stage, done=self._done)

    def uncancellable(self) -> None:
        """Print that the tail begins."""
        super().uncancellable()
        self._emit(event="uncancellable")

    def cancel_deferred(self) -> None:
        """Print that a cancellation waits for the end."""
        self._emit(event="cancel-deferred")


@contextmanager
def _bar() -> Iterator[CommandProgress]:
    # Imported late: it costs more than everything else that starts.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.progress import Progress as RichProgress  # noqa: PLC0415

    columns = (TextColumn("{task.description:<36}"), BarColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        class BarProgress(CommandProgress):
            done = 0

            def stage(self, stage: Stage, total: int | None) -> None:
                self.done = 0
                bars.reset(task, description=DESCRIPTIONS[stage], total=total)

            def advance(self, count: int) -> None:
                self.done += count
                if self.done % 256 == 0:  # a call takes a lock and a few microseconds
                    bars.update(task, completed=self.done)

            def cancel_deferred(self) -> None:
                bars.console.print(_DEFERRED)

        yield BarProgress()
