"""``asyncmig synth``."""

from __future__ import annotations

import contextlib

import click

from asyncmig.cli.options import PATH, check_not_empty
from asyncmig.errors import printable


@click.command(short_help="Make a v1 cache for trials.")
@click.argument("path", type=PATH)
@click.option("--records", type=int, required=True, metavar="N", help="How many records to make, up to 10,000,000.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same cache.")
@click.option("--bare", is_flag=True, help="Leave out the directories of the snapshots; verify reports them as missing.")
def synth(path: str, records: int, seed: int, bare: bool) -> None:
    """Make a realistic v1 cache at PATH, for trials and benchmarks.

    PATH is the worker directory to make (runc-overlayfs), or a BuildKit root in which to make one.
    """
    check_not_empty(path=path)
    from asyncmig.synth import synthesize  # noqa: PLC0415  (no other command needs it)

    made = synthesize(path, records=records, seed=seed, bare=bare)
    with contextlib.suppress(OSError):  # it is made, whether somebody reads that or not
        click.echo(f"made {printable(made.directory)}: {made.records} records")
