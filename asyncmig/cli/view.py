"""A report for people."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from rich.filesize import decimal as size_text

from asyncmig.cli.output import say
from asyncmig.errors import listed, printable
from asyncmig.migration.decisions import Action
from asyncmig.migration.report import Counts, Outcome, Report

_MOST = 20
"""Decisions, and notes, that are shown."""

_HEADLINES = {
    Outcome.MIGRATED: "migrated",
    Outcome.COMPLETED: "migration completed:",
    Outcome.WOULD_MIGRATE: "plan: would migrate",
    Outcome.ALREADY_MIGRATED: "already migrated:",
    Outcome.INTERRUPTED: "interrupted: run 'asyncmig migrate' again to complete it:",
    Outcome.ROLLBACK_INTERRUPTED: "interrupted: run 'asyncmig rollback' again to complete it:",
    Outcome.NOTHING_TO_DO: "nothing to do: no metadata.db in",
    Outcome.ROLLED_BACK: "rolled back",
    Outcome.WOULD_ROLL_BACK: "dry run: would roll back",
}
_NEXT = {
    Outcome.MIGRATED: "next: check the result with 'asyncmig verify', then start the new daemon. "
    "Keep metadata.db and metadata_v2.db.journal until you are satisfied: 'asyncmig rollback' needs both",
    Outcome.COMPLETED: "next: check the result with 'asyncmig verify', then start the new daemon",
    Outcome.ROLLED_BACK: "metadata_v2.db is now metadata_v2.db.rolled-back. You may start the old daemon, or migrate again",
}
_PREPARED = (Outcome.MIGRATED, Outcome.WOULD_MIGRATE)


def print_report(report: Report, seconds: float) -> None:
    """Print it."""
    say(f"{_HEADLINES[report.outcome]} {printable(report.path)}")
    for name, text in _facts(report, seconds):
        say(f"  {name + ':':<16}{text}")
    _print_decisions(report)
    for note in report.notes[:_MOST]:
        about = f"record {printable(note.name)}: " if note.name else ""
        say(f"  note: {about}{note.text}")
    if len(report.notes) > _MOST:
        say(f"  and {len(report.notes) - _MOST} more notes (--report shows all)")
    if report.refused:
        say(f"the migration would refuse to begin: {report.refused}")
    elif report.outcome in _NEXT:
        say(_NEXT[report.outcome])


def _print_decisions(report: Report) -> None:
    for action in Action:
        decisions = [decision for decision in report.decisions if decision.action is action]
        if not decisions:
            continue
        codes = Counter(decision.code.value for decision in decisions)
        say(f"  {action.value + ':':<16}{', '.join(f'{count} {code}' for code, count in sorted(codes.items()))}")
        for decision in decisions[:_MOST]:
            say(f"    {printable(decision.record)}: {decision.text}")
        if len(decisions) > _MOST:
            say(f"    and {len(decisions) - _MOST} more (--report shows all)")


def _facts(report: Report, seconds: float) -> Iterator[tuple[str, str]]:
    counts = report.counts
    if report.outcome in _PREPARED:
        yield "records", _records(report)
        yield "layers", f"{counts.blobs:,} with a blob, {counts.chains:,} with new chain IDs"
    match report.outcome:
        case Outcome.MIGRATED:
            yield "leases", f"{counts.leases_created:,} created, {counts.leases_existing:,} already existed"
            yield "labels", f"removed from {_released(counts)}"
        case Outcome.COMPLETED:
            yield "labels", f"removed from {_released(counts)}"
        case Outcome.WOULD_MIGRATE:
            yield from _plan(report)
        case Outcome.ROLLED_BACK:
            yield "labels", f"{counts.labels_restored:,} restored"
            yield "leases", f"{counts.leases_deleted:,} deleted"
        case Outcome.WOULD_ROLL_BACK:
            yield "labels", f"{counts.snapshots_labelled + counts.blobs_labelled:,} would be restored"
            yield "leases", f"{counts.leases:,} would be deleted"
        case _:
            return
    yield "stores", f"snapshotter {printable(report.snapshotter)}, namespace {printable(report.namespace)}"
    if report.address:
        yield "containerd", f"{printable(report.server)}, running, at {printable(report.address)}"
    yield "semantics", printable(report.semantics)
    yield "time", f"{seconds:.2f} s"


def _records(report: Report) -> str:
    counts = report.counts
    text = f"{counts.records:,}"
    if counts.deleted or counts.dropped:
        text = f"{counts.found:,} found, {counts.records:,} kept"
        if counts.deleted:
            text += f", {counts.deleted:,} deleted (the daemon had begun to)"
        if counts.dropped:
            text += f", {counts.dropped:,} dropped ({counts.dropped * 100 / counts.found:.3g} %)"
        text += f"; {counts.holders:,} of those kept are not finalised" if counts.holders else ""
    elif counts.holders:
        text += f", {counts.holders:,} of them not finalised (they share another record's snapshot)"
    return text


def _released(counts: Counts) -> str:
    views = (counts.views_released, "stale view")
    return listed((counts.snapshots_released, "snapshot"), (counts.blobs_released, "blob"), views)


def _plan(report: Report) -> Iterator[tuple[str, str]]:
    counts = report.counts
    yield "leases", f"{counts.leases:,} to create or complete"
    snapshots = (counts.snapshots_labelled - counts.views, "snapshot")
    labelled = listed(snapshots, (counts.blobs_labelled, "blob"), (counts.views, "stale view"))
    stale = " (a stopped daemon has left the views)" if counts.views else ""
    yield "labels", f"to remove from {labelled}{stale}"
    if report.edited:
        yield "would edit", ", ".join(map(printable, report.edited))
    if report.address:
        yield "would change", f"leases and labels in namespace {printable(report.namespace)} of this containerd"
    yield (
        "would create",
        ", ".join(printable(os.path.join(report.path, name)) for name in ("metadata_v2.db", "metadata_v2.db.journal")),
    )
    yield "would take", f"about {max(1.0, report.seconds_expected):,.0f} s, and up to {_room(report)}"


def _room(report: Report) -> str:
    return " and ".join(f"{size_text(size)} at {printable(path)}" for path, size in report.bytes_needed.items())
