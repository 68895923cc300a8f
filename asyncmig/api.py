"""The public entry points.

What they need is imported at the first call, in a worker thread: it takes a tenth of a second, for which a command that only
prints its version need not wait, and an event loop must not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from asyncmig.audit.findings import Verification
from asyncmig.concurrency import in_thread
from asyncmig.errors import AsyncmigError, OptionError, ResourceError, StrPath, lack_of_resources
from asyncmig.migration.changes import Change
from asyncmig.migration.progress import Progress
from asyncmig.migration.report import Report
from asyncmig.runs.options import Options, check_path


async def migrate(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Migrate the v1 cache at ``path`` in place; the buildkitd that uses it must be stopped.

    ``path`` is a worker directory or a BuildKit root holding one.  Works under asyncio and trio; all blocking work is done
    in worker threads.  A cache that is migrated already, or that has no v1 database, is left alone, but for the labels that an
    interrupted run has left.

    Raises :class:`AsyncmigError`: its kind :class:`IncompleteMigrationError` means that the stores have been changed in part
    and a rerun completes the work, every other kind that nothing has changed.

    Cancellation takes effect at once and leaves everything as it was until the new database is complete; after that the rest
    is done first, which no kind of cancellation interrupts, and then the cancellation is raised.  The report of such a run is
    what :meth:`Progress.ended` was called with: a second call finds nothing left to do, and counts nothing.
    """
    options = _checked(path, options, progress)
    with _understood():
        run = await _imported("migrate")
        report: Report = await run.migrate(path, options, progress)
        return report


async def plan(
    path: StrPath,
    options: Options | None = None,
    *,
    on_change: Callable[[Change], None] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Do everything that :func:`migrate` would do before it changes something, and tell what it would change.

    ``on_change`` is called, in a worker thread, for every value, index entry, lease and label that would change.  Whether the
    migration would refuse to begin is told in :attr:`Report.refused`, not raised.  Otherwise as :func:`migrate`; cancellation
    takes effect at once.
    """
    options = _checked(path, options, progress)
    if on_change is not None and not callable(on_change):
        raise OptionError("on_change", f"is a {type(on_change).__name__}; give a function")
    with _understood():
        run = await _imported("migrate")
        report: Report = await run.migrate(path, replace(options, dry_run=True), progress, on_change)
        return report


async def rollback(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Undo the migration of the cache at ``path``: labels back, its leases gone, ``metadata_v2.db`` moved aside.

    Of the options, those count that tell where the cache is, and ``dry_run``.  An interrupted migration can be undone, too.
    Raises :class:`AsyncmigError` if there is no journal of a migration, or if a newer daemon has changed the v2 database since;
    its kind :class:`IncompleteRollbackError` means that a rerun completes the work, every other kind that nothing has changed.
    A cancellation takes effect at once until the first change, and after the last one; then :meth:`Progress.ended` has had the
    report.
    """
    options = _checked(path, options, progress)
    with _understood():
        run = await _imported("rollback")
        report: Report = await run.rollback(path, options, progress)
        return report


async def verify(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Verification:
    """Check the v2 cache at ``path``, migrated or not, from end to end; the buildkitd that uses it must be stopped.

    Every record by the rules by which BuildKit loads it, its snapshot, blob and lease, chain IDs, the index, and what nobody
    owns.  Of the options, those count that tell where the cache is.  Nothing is changed, ever; works under asyncio and trio.

    Raises :class:`AsyncmigError`: :class:`LayoutError` if there is no v2 database, :class:`DatabaseLockedError` while a daemon
    runs.  Cancellation takes effect at once.
    """
    options = _checked(path, options, progress)
    with _understood():
        run = await _imported("verify")
        result: Verification = await run.verify(path, options, progress)
        return result


def _checked(path: StrPath, options: Options | None, progress: Progress | None) -> Options:
    """The options, or the usual ones.  Raises :class:`OptionError` for arguments of wrong types."""
    check_path("path", path)
    if options is not None and not isinstance(options, Options):
        raise OptionError("options", f"is a {type(options).__name__}; give an asyncmig.Options")
    if progress is not None and not isinstance(progress, Progress):
        raise OptionError("progress", f"is a {type(progress).__name__}; give a subclass of asyncmig.Progress")
    return options if options is not None else Options()


async def find_caches(path: StrPath) -> list[str]:
    """The worker directories that ``path`` means: itself, or those that hold a cache in the BuildKit root that it is.

    Of a root, those of interrupted runs come first.  The other entry points act on one cache, and refuse a root that holds
    several; call them for each.  Raises :class:`LayoutError` for what can't be looked into.
    """
    with _understood():
        caches = await _imported("caches")
        return await in_thread(lambda checkpoint: list(caches.find_caches(checkpoint, path).caches))


@contextmanager
def _understood() -> Iterator[None]:
    """Make an error of ours of what Python raises when the process lacks memory, threads or files."""
    try:
        yield
    except AsyncmigError:
        raise
    except Exception as error:
        lacking = lack_of_resources(error)
        if not lacking:
            raise
        raise ResourceError(lacking) from error


async def _imported(run: str) -> ModuleType:
    return await in_thread(lambda _: import_module(f"asyncmig.runs.{run}"))


__all__ = ["Options", "find_caches", "migrate", "plan", "rollback", "verify"]
