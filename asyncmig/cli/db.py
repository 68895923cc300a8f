"""``asyncmig db``: looking into bolt files."""

from __future__ import annotations

import contextlib

import click

from asyncmig.bolt import Db, dump
from asyncmig.bolt import check as check_file
from asyncmig.bolt.check import CheckResult
from asyncmig.cli.output import binary_output, say, writing_output
from asyncmig.errors import counted


@click.group(short_help="Look into bolt databases.")
def db() -> None:
    """Look into a bolt database, such as metadata.db, containerdmeta.db or meta.db."""


@db.command(short_help="Check a bolt database.")
@click.argument("file", type=click.Path())
def check(file: str) -> int:
    """Check FILE from end to end.  The exit code is 1 if it is damaged.

    Finds all that bbolt's own check finds, and also checks bounds, the order of keys, and inline buckets.  It looks at the
    file format only: it does not notice records, snapshots or leases that make no sense.
    """
    result = check_file(file)
    with writing_output():
        _print_result(result)
    if result.clean:
        return 0
    more = " and more" if result.truncated else ""
    with contextlib.suppress(OSError):  # the exit code says it, too
        click.echo(f"damaged: {counted(len(result.findings), 'finding')}{more}", err=True)
    return 1


def _print_result(result: CheckResult) -> None:
    for finding in result.findings:
        say(str(finding))
    for note in result.notes:
        say(f"note: {note}")
    if result.clean:
        say(
            f"clean: {result.pages} pages of {result.page_size} bytes, {result.free_pages} free, "
            f"{result.buckets} buckets, {result.keys} keys"
        )


@db.command("dump", short_help="Print a bolt database as JSON lines.")
@click.argument("file", type=click.Path())
def dump_command(file: str) -> None:
    """Print FILE as JSON lines, depth first in key order.

    \b
    {"p":[bucket names],"b":true}                  a bucket ("seq":n if its sequence is not 0)
    {"p":[bucket names],"k":key,"v":value}         a key with a printable value
    {"p":[bucket names],"k":key,"vx":hex}          a key with any other value
    Names that are not printable are written hex:<hex>.
    """
    stream = binary_output()
    with Db.open(file) as opened, writing_output():
        for line in dump(opened):
            stream.write(line.encode() + b"\n")
