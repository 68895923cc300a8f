"""``asyncmig verify``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import click
from rich.filesize import decimal as size_text

import asyncmig
from asyncmig.audit.findings import Finding, Verification
from asyncmig.cli.options import cache_options, check_not_empty, running_options
from asyncmig.cli.output import say, writing_output
from asyncmig.cli.progress import show_progress
from asyncmig.cli.run import run
from asyncmig.errors import counted, printable
from asyncmig.migration.report import Note

EXIT_FINDINGS = 3
_MOST = 5
"""Findings of one kind that are shown."""


@click.command(short_help="Check a v2 cache.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as one JSON object.")
@running_options
def verify(path: str, as_json: bool, progress: str, backend: str, **options: Any) -> int:
    """Check the v2 cache at PATH, migrated or not.  Change nothing.

    Checks that BuildKit would load every record, that its data exists and its lease protects it, that chain IDs, sizes,
    media types and the index are right, and what is kept without an owner.  Stop buildkitd first.

    The exit code is 0 if nothing is wrong with the records, 3 if something is.  Notes are about what belongs to no record;
    in a containerd it may belong to others.  Notes don't change the exit code.
    """
    check_not_empty(path=path, containerd_root=options["containerd_root"])
    with show_progress(progress) as shown:
        function = partial(asyncmig.verify, path, asyncmig.Options(**options), progress=shown)
        result = run(function, backend=backend, on_signal=shown.interrupted)
    with writing_output():
        if as_json:
            click.echo(json.dumps(result.to_dict()))
        else:
            _print(result)
    return 0 if result.clean else EXIT_FINDINGS


def _print(result: Verification) -> None:
    found = len(result.findings)
    headline = "clean" if result.clean else counted(found, "finding")
    say(f"{headline}: {printable(result.path)}")
    for name, text in _facts(result):
        say(f"  {name + ':':<16}{text}")
    _print_findings("", result.findings)
    _print_findings("note: ", result.notes)


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


def _print_findings(prefix: str, findings: Sequence[Finding | Note]) -> None:
    code = attrgetter("code")
    for kind, group in groupby(sorted(findings, key=code), key=code):
        same = list(group)
        say(f"  {prefix}{kind} ({len(same)})")
        for finding in same[:_MOST]:
            say(f"    {printable(finding.name)}: {finding.text}")
        if len(same) > _MOST:
            say(f"    and {len(same) - _MOST:,} more (--json shows all)")
