"""What a caller hears of a run: its stages and progress while it runs, notes meanwhile, the result in the end.

Everything that a run tells goes through one :class:`Reporter`, so whoever wants to listen in another way needs no change in the
stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Generic, ParamSpec, TypeVar

from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.report import Note, Report, Result

P = ParamSpec("P")
R = TypeVar("R", bound=Result)


class Reporter(Generic[R]):
    """Passes progress on to the caller's :class:`Progress`, and fills ``result``.

    A ``Progress`` that raises hears nothing any more: a closed terminal must not end a migration half-way.
    """

    def __init__(self, result: R, progress: Progress | None = None) -> None:
        self.result = result
        self._progress = progress or Progress()
        self._has_ended = False

    def begin(self, *stages: Stage) -> None:
        """Tell which stages the run will go through."""
        self._pass_on(self._progress.begin, stages)

    @contextmanager
    def stage(self, stage: Stage, total: int | None = None) -> Iterator[None]:
        """Tell that the stage begins and, if the block does not raise, that it has ended; add its wall time to the result."""
        self._pass_on(self._progress.stage, stage, total)
        start = perf_counter()
        try:
            yield
        finally:
            seconds = self.result.seconds
            seconds[stage] = seconds.get(stage, 0.0) + perf_counter() - start
        self._pass_on(self._progress.end_stage, stage)

    def advance(self, count: int) -> None:
        """``count`` more items of the running stage are done."""
        self._pass_on(self._progress.advance, count)

    def uncancellable(self) -> None:
        """The tail begins."""
        self._pass_on(self._progress.uncancellable)

    def cancel_deferred(self) -> None:
        """A native cancellation has arrived in the tail."""
        self._pass_on(self._progress.cancel_deferred)

    def ended(self: Reporter[Report]) -> None:
        """The run has ended well, and the result is complete.  Told once: a run with a tail has ended with that."""
        if not self._has_ended:
            self._has_ended = True
            self._pass_on(self._progress.ended, self.result)

    def note(self, code: str, text: str, name: str = "") -> None:
        """Add a note to the result; ``name`` is what it is about."""
        self.result.notes.append(Note(code, name, text))

    def _pass_on(self, method: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            self._progress = Progress()
            self.note("progress-failed", f"the progress callback raised {type(error).__name__}; it was not called again")
