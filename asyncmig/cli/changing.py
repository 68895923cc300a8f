"""What the commands that change a cache have in common: they run, write a report, and say that nothing was changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from asyncmig.cli.progress import show_progress
from asyncmig.cli.reports import Reports, failure
from asyncmig.cli.run import run
from asyncmig.errors import AsyncmigError, IncompleteMigrationError, IncompleteRollbackError
from asyncmig.migration.report import Report


def run_reporting(
    function: Callable[..., Awaitable[Report]], *args: object, reports: Reports, progress: str, backend: str
) -> Report:
    """Run ``function(*args, progress=...)``; its report, or its error, is added to ``reports`` as well."""
    try:
        with show_progress(progress) as shown:
            result = run(partial(function, *args, progress=shown), backend=backend, on_signal=shown.interrupted)
    except Exception as error:
        if isinstance(error, AsyncmigError) and not isinstance(error, IncompleteMigrationError | IncompleteRollbackError):
            error.add_note("nothing was changed")
        reports.add(failure(error))
        raise
    reports.add(result.to_dict())
    return result
