"""``asyncmig migrate``, ``asyncmig plan`` and ``asyncmig rollback``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import Any

import click

import asyncmig
from asyncmig.cli.changes import change_line
from asyncmig.cli.changing import run_reporting
from asyncmig.cli.each import act_on_each, caches_of
from asyncmig.cli.options import (
    cache_options,
    check_not_empty,
    drop_limit_option,
    report_option,
    running_options,
    semantics_options,
    trust_option,
)
from asyncmig.cli.output import Lines, writing_output
from asyncmig.cli.reports import Reports, check_report_path, goes_to_output
from asyncmig.cli.view import print_report
from asyncmig.migration.report import Report

EXIT_REFUSED = 1


@click.command(short_help="Migrate a v1 cache in place.")
@cache_options
@semantics_options
@click.option("--dry-run", is_flag=True, help="Compute everything, change nothing.  'asyncmig plan' shows more.")
@trust_option
@report_option
@running_options
def migrate(path: str, worker: str | None, report: str | None, progress: str, backend: str, **options: Any) -> int:
    """Migrate the v1 cache at PATH in place.

    PATH is a worker directory (runc-overlayfs) or the BuildKit root that holds it (usually /var/lib/buildkit).  Of a root,
    every worker directory that holds a cache is migrated, one after the other.  Stop buildkitd first.

    The migration never writes metadata.db.  It creates metadata_v2.db beside it, and metadata_v2.db.journal, which
    'asyncmig rollback' needs.  It leaves a cache alone that is migrated already.  If a run is interrupted, the next one
    completes it.

    The stores of a worker directory containerd-<snapshotter> are in a containerd.  It may go on running (--address), or be
    stopped (--containerd-root).
    """
    return _run(asyncmig.migrate, path, worker, report, progress, backend, options, is_result=options["dry_run"])


@click.command(short_help="Show what migrate would do.")
@cache_options
@semantics_options
@click.option("--json", "as_json", is_flag=True, help="Print each change as a line of JSON, and the report last.")
@trust_option
@report_option
@running_options
def plan(path: str, worker: str | None, as_json: bool, report: str | None, progress: str, backend: str, **options: Any) -> int:
    """Show what 'migrate' with the same options would do to the cache at PATH.  Change nothing.

    It computes all that a migration computes before its first change.  The exit code is 1 if the migration would refuse to
    begin.

    \b
    With --json, each line is one of these:
    {"change": "record", "record", "old", "new"}       values that differ, by key; old null: created, new null: dropped
    {"change": "index", "key", "added"}                an entry of the index, added or removed
    {"change": "lease", "lease", "new", "labels", "resources"}    what a lease gets, new or existing
    {"change": "label", "kind", "name", "label", "value"}         a label that a snapshot or blob loses
    {"report": ...}                                    last: counts, decisions, notes, time and space needed
    """
    if not as_json:
        return _run(asyncmig.plan, path, worker, report, progress, backend, options, is_result=True)
    if goes_to_output(report):
        raise click.UsageError("--json and --report - exclude each other; the last line of --json is the report")
    check_report_path(report)
    caches, reports, lines = _caches(path, worker, options), Reports(report), Lines()
    function = partial(asyncmig.plan, on_change=lambda change: lines.write(change_line(change)))

    def plan_one(cache: str) -> int:
        if len(caches) > 1:
            lines.write(json.dumps({"cache": cache}))
        result = _call(function, cache, reports, progress, backend, options)
        lines.write(json.dumps({"report": result.to_dict()}))
        return EXIT_REFUSED if result.refused else 0

    code = act_on_each(caches, plan_one)
    lines.end()
    return code


@click.command(short_help="Undo a migration.")
@cache_options
@drop_limit_option
@click.option("--dry-run", is_flag=True, help="Show whether it can be undone and what would change.  Change nothing.")
@trust_option
@report_option
@running_options
def rollback(path: str, worker: str | None, report: str | None, progress: str, backend: str, **options: Any) -> int:
    """Undo the migration of the cache at PATH, as long as no newer daemon has worked with it.

    Restores the labels, deletes the leases that asyncmig created, and renames metadata_v2.db to
    metadata_v2.db.rolled-back.  It reads from metadata_v2.db.journal what to undo.  It refuses if metadata_v2.db has changed
    since the migration.
    """
    return _run(asyncmig.rollback, path, worker, report, progress, backend, options, is_result=options["dry_run"])


def _run(
    function: Callable[..., Any],
    path: str,
    worker: str | None,
    report: str | None,
    progress: str,
    backend: str,
    options: dict[str, Any],
    *,
    is_result: bool,
) -> int:
    """Run it for each cache, and print the reports.  ``is_result`` tells that nothing else was wanted of it."""
    check_report_path(report)
    reports = Reports(report)

    def output() -> AbstractContextManager[None]:
        # Where the work is done, a closed pipe or a full disk behind standard output does not change that.
        return writing_output() if is_result else contextlib.suppress(OSError, MemoryError)

    def run_one(cache: str) -> int:
        start = perf_counter()
        result = _call(function, cache, reports, progress, backend, options)
        if not reports.go_to_output:
            with output():
                print_report(result, perf_counter() - start)
        return EXIT_REFUSED if result.refused else 0

    try:
        return act_on_each(_caches(path, worker, options), run_one)
    finally:
        with output():
            reports.end()


def _caches(path: str, worker: str | None, options: dict[str, Any]) -> list[str]:
    check_not_empty(path=path, containerd_root=options["containerd_root"])
    return caches_of(path, worker, options)


def _call(
    function: Callable[..., Any], cache: str, reports: Reports, progress: str, backend: str, options: dict[str, Any]
) -> Report:
    return run_reporting(function, cache, asyncmig.Options(**options), reports=reports, progress=progress, backend=backend)
