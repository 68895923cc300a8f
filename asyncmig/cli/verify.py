"""``asyncmig verify``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import click
from rich.filesize import decimal as size_text

import asyncmig
from asyncmig.audit.findings import Finding, NoteCode, Verification
from asyncmig.cli.each import act_on_each, caches_of
from asyncmig.cli.errors import EXIT_FINDINGS
from asyncmig.cli.options import cache_options, check_not_empty, running_options
from asyncmig.cli.output import say, writing_output
from asyncmig.cli.progress import show_progress
from asyncmig.cli.run import run
from asyncmig.errors import counted, printable
from asyncmig.migration.report import Note

Item = TypeVar("Item", Finding, Note)

_MOST = 5
"""Findings of one kind that are shown."""

_GO = "the next garbage collection removes them"
_OF_OTHERS = "of no record, lease or label; images and containers may need them, which verify can't see while containerd runs"
_SUMMARIES = {
    NoteCode.HOLDER_FINALISED: "records marked as not finalised, with snapshots of their own; BuildKit before v0.10 drops them",
    NoteCode.MEDIA_TYPE_UNKNOWN: "records with a media type that is unknown for layers",
    NoteCode.LEASE_NOT_FLAT: "leases of records that protect more than they must",
    NoteCode.LEASE_WITHOUT_RECORD: "leases of no record",
    NoteCode.LABEL_WITHOUT_RECORD: "labels of v1 on what belongs to no record; it is never collected",
    NoteCode.VIEW_STALE: f"stale views of the old daemon, released by the migration; {_GO}",
    NoteCode.SNAPSHOT_UNOWNED: f"unreferenced snapshots; {_GO}",
    NoteCode.BLOB_UNOWNED: f"unreferenced blobs; {_GO}",
    NoteCode.SNAPSHOT_FOREIGN: f"snapshots {_OF_OTHERS}",
    NoteCode.BLOB_FOREIGN: f"blobs {_OF_OTHERS}",
}


@click.command(short_help="Check a v2 cache.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Name everything that was found, not only a few of each kind.")
@running_options
def verify(path: str, worker: str | None, as_json: bool, verbose: bool, progress: str, backend: str, **options: Any) -> int:
    """Check the v2 cache at PATH, migrated or not.  Change nothing.

    Checks that BuildKit would load every record, that its data exists and its lease protects it, that chain IDs, sizes,
    media types and the index are right, and what is kept without an owner.  Where the stores are files, each snapshot's
    directory is looked for, too.  Stop buildkitd first.

    The exit code is 0 if nothing is wrong with the records, 3 if something is.  Notes are about what belongs to no record;
    in a containerd it may belong to others.  Notes don't change the exit code.
    """
    check_not_empty(path=path, containerd_root=options["containerd_root"])
    caches = caches_of(path, worker, options)
    results: list[dict[str, Any]] = []

    def verify_one(cache: str) -> int:
        with show_progress(progress) as shown:
            function = partial(asyncmig.verify, cache, asyncmig.Options(**options), progress=shown)
            result = run(function, backend=backend, on_signal=shown.interrupted)
        if as_json:
            results.append(result.to_dict())
        else:
            with writing_output():
                _print(result, verbose=verbose)
        return 0 if result.clean else EXIT_FINDINGS

    code = act_on_each(caches, verify_one)
    if as_json:
        with writing_output():
            click.echo(json.dumps({"caches": results} if len(caches) > 1 else results[0]))
    return code


def _print(result: Verification, *, verbose: bool) -> None:
    found = len(result.findings)
    headline = "clean" if result.clean else counted(found, "finding")
    if result.interrupted:
        headline = (
            f"interrupted: run 'asyncmig {result.interrupted}' again to complete it; {counted(found, 'finding')} until then"
        )
    say(f"{headline}: {printable(result.path)}")
    for name, text in _facts(result):
        say(f"  {name + ':':<16}{text}")
    for code, findings in _by_code(result.findings):
        say(f"  {code} ({len(findings):,})")
        _print_each(findings, len(findings) if verbose else _MOST)
    for code, notes in _by_code(result.notes):
        _print_notes(result, code, notes, verbose=verbose)


def _facts(result: Verification) -> Iterator[tuple[str, str]]:
    counts = result.counts
    yield (
        "records",
        (
            f"{counts.records:,}: {counts.committed:,} committed ({counts.holders:,} of them not finalised), "
            f"{counts.mutable:,} mutable; {counts.lazy:,} not extracted yet"
        ),
    )
    yield "snapshots", f"{counts.snapshots:,}"
    yield (
        "blobs",
        (
            f"{counts.owned_blobs:,} of records ({size_text(counts.owned_bytes)}), "
            f"{counts.unowned_blobs:,} others ({size_text(counts.unowned_bytes)})"
        ),
    )
    yield "leases", f"{counts.leases:,}"
    yield "stores", f"snapshotter {printable(result.snapshotter)}, namespace {printable(result.namespace)}"
    if result.address:
        yield "containerd", f"{printable(result.server)}, running, at {printable(result.address)}"
    yield "time", f"{sum(result.seconds.values()):.2f} s"


def _by_code(found: Sequence[Item]) -> Iterator[tuple[str, list[Item]]]:
    code = attrgetter("code")
    for kind, group in groupby(sorted(found, key=code), key=code):
        yield kind, list(group)


def _print_notes(result: Verification, code: str, notes: Sequence[Note], *, verbose: bool) -> None:
    """Notes may be many on a sound cache: one line a kind, unless they are of the run itself."""
    if code not in _SUMMARIES:
        for note in notes:
            say(f"  note: {note.text}")
        return
    size = result.counts.free_bytes.get(code, 0)
    freed = f" (about {size_text(size)})" if size else ""
    say(f"  note: {_SUMMARIES[NoteCode(code)]}: {len(notes):,}{freed}")
    if verbose:
        _print_each(notes, len(notes))


def _print_each(found: Sequence[Finding | Note], most: int) -> None:
    for item in found[:most]:
        say(f"    {printable(item.name)}: {item.text}")
    if len(found) > most:
        say(f"    and {len(found) - most:,} more (-v or --json shows all)")
