"""How the command line shows progress, on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import click

from asyncmig.migration.progress import Progress, Stage

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

DESCRIPTIONS = {
    Stage.OPEN: "locking and checking the databases",
    Stage.READ: "reading the records",
    Stage.RESOLVE: "looking up snapshots",
    Stage.BLOBS: "looking up blobs",
    Stage.CHAINS: "computing chain IDs",
    Stage.LEASES: "looking up leases",
    Stage.BUILD: "writing the new database",
    Stage.PROTECT: "creating leases (not interruptible)",
    Stage.VERIFY: "checking",
    Stage.RELEASE: "removing v1 labels (not interruptible)",
    Stage.PUBLISH: "publishing the new database",
    Stage.RESTORE: "restoring v1 labels (not interruptible)",
    Stage.WITHDRAW: "moving the new database aside",
    Stage.UNPROTECT: "deleting leases (not interruptible)",
}
_REDRAW = 0.1
"""Seconds between two looks at how far a stage is: a call takes a lock and some microseconds, and there may be millions."""


@contextmanager
def show_progress(kind: str) -> Iterator[CommandProgress]:
    """The progress of the given kind: ``auto``, ``plain``, ``json`` or ``none``."""
    if kind == "auto":
        kind = _best_kind()
    if kind == "bar":
        with _bar() as progress:
            yield progress
    else:
        yield {"plain": PlainProgress, "json": JsonProgress, "none": CommandProgress}[kind]()


def _best_kind() -> str:
    if sys.stderr is None or not sys.stderr.isatty():
        return "none"
    # A dumb terminal can't redraw a line.
    return "plain" if os.environ.get("TERM", "dumb") in ("dumb", "unknown") else "bar"


class CommandProgress(Progress):
    """Follows how far a stage is, and says why an interrupt seems to be ignored; shows nothing else."""

    def __init__(self) -> None:
        self._stages: tuple[Stage, ...] = ()
        self._stage: Stage | None = None
        self._total: int | None = None
        self._done = 0
        self._began = self._shown = monotonic()
        self._in_tail = self._told = False

    # -- what the run tells

    def begin(self, stages: tuple[Stage, ...]) -> None:
        """Remember how many stages there are."""
        self._stages = stages

    def stage(self, stage: Stage, total: int | None) -> None:
        """Begin to count."""
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._shown = monotonic()
        self.stage_begins(stage)

    def advance(self, count: int) -> None:
        """Count, and show it from time to time."""
        self._done += count  # may pass the total: what is found on the way is looked up, too
        now = monotonic()
        if now - self._shown >= _REDRAW:
            self._shown = now
            self.stage_goes_on(self._done if self._total is None else min(self._done, self._total))

    def end_stage(self, stage: Stage) -> None:
        """Show that all is done: the last few items may have come too soon after the ones before to be shown."""
        if self._total is not None:
            self._done = self._total
        self.stage_ends(stage)

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
        self.say(f"past the point of no return, finishing{self._time_left()}")

    def _time_left(self) -> str:
        if not self._total or not self._done:
            return ""
        left = (monotonic() - self._began) * (self._total - self._done) / self._done
        return f"; this stage takes about {max(1, round(left))} s more"

    # -- what is shown of it

    def stage_begins(self, stage: Stage) -> None:
        """Show that a stage begins."""

    def stage_goes_on(self, done: int) -> None:
        """Show how far the stage is."""

    def stage_ends(self, stage: Stage) -> None:
        """Show that the stage has ended."""

    def say(self, text: str) -> None:
        """Print a line."""
        click.echo(text, err=True)


class PlainProgress(CommandProgress):
    """A line when a stage begins, and one with its count when it ends if that was not known before."""

    def stage_begins(self, stage: Stage) -> None:
        """Print the stage."""
        self.say(f"{stage}: {DESCRIPTIONS[stage]}" + ("" if self._total is None else f" ({self._total})"))

    def stage_ends(self, stage: Stage) -> None:
        """Print how much it was."""
        if self._total is None and self._done:
            self.say(f"{stage}: {self._done} done")


class JsonProgress(CommandProgress):
    """A JSON object a line: an event for each stage, at most ten a second for what is done of it, and one for its end."""

    def stage_begins(self, stage: Stage) -> None:
        """Print the beginning of a stage."""
        self._emit("stage", stage=stage, total=self._total)

    def stage_goes_on(self, done: int) -> None:
        """Print how far the stage is."""
        self._emit("progress", stage=self._stage, done=done)

    def stage_ends(self, stage: Stage) -> None:
        """Print the end of a stage."""
        self._emit("stage-end", stage=stage, done=self._done)

    def uncancellable(self) -> None:
        """Print that the tail begins."""
        super().uncancellable()
        self._emit("uncancellable")

    def cancel_deferred(self) -> None:
        """Print that a cancellation waits for the end."""
        self._emit("cancel-deferred")

    def _emit(self, event: str, **content: object) -> None:
        self.say(json.dumps({"event": event, **content}))


@contextmanager
def _bar() -> Iterator[CommandProgress]:
    # Imported late: it costs more than everything else that starts.
    from rich.console import Console, RenderableType  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars  # noqa: PLC0415

    class KnownBarColumn(ProgressColumn):
        """No bar where there is no total: rich's own would be a full one on terminals without colours."""

        bar = BarColumn(bar_width=16)

        def render(self, task: Task) -> RenderableType:
            return self.bar.render(task) if task.total is not None else ""

    columns = (
        TextColumn("{task.description}"),
        KnownBarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _BarProgress(bars)


class _BarProgress(CommandProgress):
    """Two bars: of all stages, and of the items of the one that runs.  rich draws them by time."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars
        self._all = bars.add_task("all stages", total=None)
        self._one = bars.add_task("", total=None)

    def begin(self, stages: tuple[Stage, ...]) -> None:
        """Show how many stages there are."""
        super().begin(stages)
        self._bars.update(self._all, total=len(stages))

    def stage_begins(self, stage: Stage) -> None:
        """Begin the second bar anew."""
        self._bars.reset(self._one, description=DESCRIPTIONS[stage], total=self._total)

    def stage_goes_on(self, done: int) -> None:
        """Move the second bar."""
        self._bars.update(self._one, completed=done)

    def stage_ends(self, stage: Stage) -> None:
        """Fill the second bar, move the first."""
        self._bars.update(self._one, completed=self._done)
        self._bars.update(self._all, advance=1)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)
