"""``asyncmig db``: looking into bolt files."""

from __future__ import annotations

import contextlib
import sys

import click

from asyncmig.bolt import Db, dump
from asyncmig.bolt import check as check_file
from asyncmig.bolt.check import CheckResult
from asyncmig.bolt.repair import repair as write_copy
from asyncmig.cli.options import PATH, check_not_empty
from asyncmig.cli.output import say, writing_output
from asyncmig.errors import counted, printable, remedy


@click.group(short_help="Look into bolt databases.")
def db() -> None:
    """Look into a bolt database, such as metadata.db, containerdmeta.db or meta.db."""


@db.command(short_help="Check a bolt database.")
@click.argument("file", type=PATH)
def check(file: str) -> int:
    """Check FILE from end to end.  The exit code is 1 if it is damaged.

    Finds all that bbolt's own check finds, and also checks bounds, the order of keys, and inline buckets.  It looks at the
    file format only: it does not notice records, snapshots or leases that make no sense.
    """
    check_not_empty(file=file)
    result = check_file(file)
    with writing_output():
        _print_result(file, result)
    if result.clean:
        return 0
    more = " and more" if result.truncated else ""
    with contextlib.suppress(OSError):  # the exit code says it, too
        click.echo(f"damaged: {counted(len(result.findings), 'finding')}{more}", err=True)
    return 1


def _print_result(file: str, result: CheckResult) -> None:
    for finding in result.findings:
        say(str(finding))
    for note in result.notes:
        say(f"note: {note}")
    if result.clean:
        say(
            f"clean: {result.pages} pages of {result.page_size} bytes, {result.free_pages} free, "
            f"{result.buckets} buckets, {result.keys} keys"
        )
    else:
        say(f"remedy: {remedy(file, mendable=result.mendable)}")


@db.command("dump", short_help="Print a bolt database as JSON lines.")
@click.argument("file", type=PATH)
def dump_command(file: str) -> None:
    """Print FILE as JSON lines, depth first in key order.

    \b
    {"p":[bucket names],"b":true}                  a bucket ("seq":n if its sequence is not 0)
    {"p":[bucket names],"k":key,"v":value}         a key with a printable value
    {"p":[bucket names],"k":key,"vx":hex}          a key with any other value
    Names that are not printable are written hex:<hex>.
    """
    check_not_empty(file=file)
    with writing_output(), Db.open(file) as opened:
        for line in dump(opened):
            sys.stdout.buffer.write(line.encode() + b"\n")


@db.command(short_help="Write a sound copy of a bolt database whose data are whole.")
@click.argument("file", type=PATH)
@click.argument("new", type=PATH)
def repair(file: str, new: str) -> None:
    """Write a sound copy of FILE to NEW, which must not exist.  FILE is not changed.

    Only the list of free pages, or one of the two meta pages, may be damaged.  No data are lost then; but if the damaged meta
    page was the newer one, the last commit is.  It refuses if anything else is damaged.  It writes nothing if FILE is sound.

    Stop the daemon first.  Then put the copy in the place of FILE, and keep FILE until all works.
    """
    check_not_empty(file=file, new=new)
    found = write_copy(file, new)
    with contextlib.suppress(OSError):  # it is done, whether somebody reads that or not
        if found.clean and not found.notes:
            say(f"nothing to repair: {printable(file)} is sound")
            return
        for problem in (*map(str, found.findings), *(f"note: {note}" for note in found.notes)):
            say(problem)
        lost = "nothing, or the last commit (see the note)" if found.notes else "nothing"
        say(f"wrote {printable(new)}: {found.buckets} buckets, {found.keys} keys; lost: {lost}")
