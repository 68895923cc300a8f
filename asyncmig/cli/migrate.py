"""``asyncmig migrate``."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from time import perf_counter

import click

import asyncmig
from asyncmig.cli.progress import show_progress
from asyncmig.cli.run import Interrupted, run
from asyncmig.errors import AsyncmigError, IncompleteMigrationError, printable
from asyncmig.layouts import LAYOUTS
from asyncmig.migration.report import REPORT_VERSION, Outcome, Report
from asyncmig.migration.semantics import SEMANTICS

_MAX_NOTICES = 20
_CACHE_FILE = re.compile(r".*\.db(\W.*)?|buildkitd\.lock|workerid", re.DOTALL)
"""Names of the files of a cache: databases with all that may stand beside them (.tmp, .journal, .before), locks and ids."""


@click.command()
@click.argument("path", type=click.Path())
@click.option("--semantics", type=click.Choice(sorted(SEMANTICS)), default="upstream", show_default=True, help="What to write.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="Kind of cache.")
@click.option("--snapshotter", metavar="NAME", help="Told from the directory's name if not given.")
@click.option(
    "--namespace", metavar="NS", help="containerd's namespace.  [default: $CONTAINERD_NAMESPACE for a containerd, or buildkit]"
)
@click.option(
    "--address",
    metavar="SOCKET",
    help="Socket of the running containerd that has the stores.  [default: $CONTAINERD_ADDRESS, or "
    "/run/containerd/containerd.sock]",
)
@click.option("--containerd-root", type=click.Path(), metavar="DIR", help="Root of a stopped containerd that has the stores.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="N",
    help="Calls at a time to a running containerd.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86400),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a running containerd that has gone or does not answer.",
)
@click.option("--dry-run", is_flag=True, help="Compute everything, change nothing.")
@click.option("--report", type=click.Path(), metavar="FILE", help="Write a report in JSON.")
@click.option("--progress", type=click.Choice(["auto", "plain", "json", "none"]), default="auto", show_default=True)
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="Event loop.")
def migrate(
    path: str,
    semantics: str,
    layout: str,
    snapshotter: str | None,
    namespace: str | None,
    address: str | None,
    containerd_root: str | None,
    concurrency: int,
    timeout: float,
    dry_run: bool,
    report: str | None,
    progress: str,
    backend: str,
) -> None:
    """Migrate the v1 cache at PATH in place.

    PATH is a worker directory (runc-overlayfs) or a BuildKit root that holds one (usually /var/lib/buildkit).  buildkitd
    must be stopped.  metadata.db is never written; metadata_v2.db appears beside it when everything else is done.  A cache
    that is migrated already is left alone, and an interrupted run is completed by the next one.

    The stores of a worker directory containerd-<snapshotter> are in a containerd, which may go on running (--address), or be
    stopped (--containerd-root).
    """
    options = asyncmig.Options(
        semantics=semantics,
        layout=layout,
        snapshotter=snapshotter,
        namespace=namespace,
        containerd_root=containerd_root,
        address=address,
        concurrency=concurrency,
        timeout=timeout,
        dry_run=dry_run,
    )
    if not path:
        raise click.BadParameter("it is empty", param_hint="PATH")
    if containerd_root == "":
        raise click.BadParameter("it is empty", param_hint="--containerd-root")
    if report is not None:
        _check_report_path(report)
    start = perf_counter()
    try:
        with show_progress(progress) as shown:
            function = partial(asyncmig.migrate, path, options, progress=shown)
            result = run(function, backend=backend, on_signal=shown.interrupted)
    except Exception as error:
        if isinstance(error, AsyncmigError) and not isinstance(error, IncompleteMigrationError):
            error.add_note("nothing was changed")
        _write_report(report, _failure(error))
        raise
    _write_report(report, result.to_dict())
    # The migration has succeeded; a closed pipe or a full disk behind standard output does not change that.
    with contextlib.suppress(OSError):
        _print_result(result, perf_counter() - start)


def _check_report_path(path: str) -> None:
    """Refuse a report that can't be written, or that would replace something else, before anything is migrated."""
    real = os.path.realpath(path)
    if os.path.isdir(real) or not os.access(os.path.dirname(real), os.W_OK):
        raise click.BadParameter(f"can't write {printable(path)}", param_hint="--report")
    # By its name, because at the end the file may be there although it is not now: the new database, which the report would
    # replace, or which it would be taken for if the migration has failed.  A database of 0 bytes looks like a new report.
    if any(_CACHE_FILE.fullmatch(os.path.basename(os.path.abspath(p))) for p in (path, real)):
        raise click.BadParameter(
            f"{printable(path)} has the name of a file of a cache; choose another name, such as report.json",
            param_hint="--report",
        )
    if os.path.lexists(path) and not _is_report(path):
        raise click.BadParameter(f"{printable(path)} exists and is not a report; it is left alone", param_hint="--report")


def _is_report(path: str) -> bool:
    if not os.path.isfile(path):
        return False  # opening a FIFO would wait for its other end
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith((b'{"report_version"', b'{\n  "report_version"')) or not os.path.getsize(
                path
            )
    except OSError:
        return False


def _write_report(path: str | None, content: dict[str, object]) -> None:
    if path is None:
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
    except OSError as error:
        with contextlib.suppress(OSError):
            click.echo(f"asyncmig: warning: no report: {printable(path)}: {error.strerror}", err=True)


def _failure(error: Exception) -> dict[str, object]:
    outcome = {IncompleteMigrationError: "incomplete", Interrupted: "interrupted"}.get(type(error), "failed")
    return {
        "report_version": REPORT_VERSION,
        "asyncmig_version": asyncmig.__version__,
        "outcome": outcome,
        "error": str(error),
        "error_type": type(error).__name__,
    }


_HEADLINES = {
    Outcome.MIGRATED: "migrated",
    Outcome.WOULD_MIGRATE: "dry run: would migrate",
    Outcome.ALREADY_MIGRATED: "already migrated:",
    Outcome.NOTHING_TO_DO: "nothing to do, no metadata.db in",
}


def _print_result(report: Report, seconds: float) -> None:
    click.echo(f"{_HEADLINES[report.outcome]} {printable(report.path)}")
    if report.outcome in (Outcome.MIGRATED, Outcome.WOULD_MIGRATE):
        for name, text in _facts(report, seconds):
            click.echo(f"  {name + ':':<16}{text}")
    for notice in report.notices[:_MAX_NOTICES]:
        about = f"record {printable(notice.record)}: " if notice.record else ""
        click.echo(f"  note: {about}{notice.text}")
    if len(report.notices) > _MAX_NOTICES:
        click.echo(f"  and {len(report.notices) - _MAX_NOTICES} more notes (--report has all)")
    if report.outcome is Outcome.MIGRATED:
        click.echo("next: start the new daemon. metadata.db was left as it is; keep it until you are satisfied")


def _facts(report: Report, seconds: float) -> Iterator[tuple[str, str]]:
    counts = report.counts
    yield "records", f"{counts.records}, {counts.holders} of them not finalised (they share another record's snapshot)"
    yield "layers", f"{counts.blobs} with a blob, {counts.chains} with new chain IDs"
    if report.outcome is Outcome.MIGRATED:
        snapshots, blobs, views = counts.snapshots_released, counts.blobs_released, counts.views_released
        yield "leases", f"{counts.leases_created} made, {counts.leases_existing} were there already"
        yield "labels removed", f"from {snapshots} snapshots, {blobs} blobs and {views} views that were left behind"
    else:
        yield "views", f"{counts.views} that were left behind and would be released"
        if report.edited:
            yield "would edit", ", ".join(map(printable, report.edited))
        if report.address:
            yield "would change", f"leases and labels in namespace {printable(report.namespace)} of this containerd"
        yield "would make", printable(os.path.join(report.path, "metadata_v2.db"))
    yield "stores", f"snapshotter {printable(report.snapshotter)}, namespace {printable(report.namespace)}"
    if report.address:
        yield "containerd", f"{printable(report.server)}, running, at {printable(report.address)}"
    yield "semantics", report.semantics
    yield "time", f"{seconds:.2f} s"
