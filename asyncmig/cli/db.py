"""``asyncmig db``: looking into bolt files."""

from __future__ import annotations

import contextlib

import click

from asyncmig.bolt import Db, dump
from asyncmig.bolt import check as check_file
from asyncmig.bolt.check import CheckResult
from asyncmig.cli.output import binary_output, say, writing_output


@click.group()
def db() -> None:
    """Look into a bolt database: metadata.db, containerdmeta.db, meta.db and the like."""


@db.command()
@click.argument("file", type=click.Path())
def check(file: str) -> int:
    """Check FILE from end to end; exit code 1 if it is damaged.

    Reports everything that bbolt's own check does, and the bounds, orders and inline buckets that it takes on trust.  It
    knows nothing of what is stored in the file: records, snapshots or leases that make no sense are no damage.
    """
    result = check_file(file)
    with writing_output():
        _print_result(result)
    if result.clean:
        return 0
    more = " and more" if result.truncated else ""
    with contextlib.suppress(OSError):  # the exit code says it, too
        click.echo(f"damaged: {len(result.findings)} finding{'s' if len(result.findings) > 1 else ''}{more}", err=True)
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


@db.command("dump")
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
