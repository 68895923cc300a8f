"""A command on a BuildKit root acts on every cache in it, one after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import click

from asyncmig.bolt.walk import no_checkpoint
from asyncmig.cli.errors import EXIT_FAILED, EXIT_FINDINGS, EXIT_INCOMPLETE, Interrupted, complain, exit_code_of
from asyncmig.cli.options import name_of
from asyncmig.errors import AsyncmigError, OptionError, printable
from asyncmig.layouts.workers import Workers
from asyncmig.runs.caches import find_caches

_BAD_TO_WORST = (0, EXIT_FINDINGS, EXIT_FAILED, EXIT_INCOMPLETE)
_OF_ONE_CACHE = ("layout", "snapshotter", "namespace", "address", "containerd_root")


def caches_of(path: str, worker: str | None, options: dict[str, Any]) -> list[str]:
    """The caches that are meant; what is passed over is told on standard error.

    Raises :class:`click.UsageError` for options that say where the stores of one cache are, if there are several.
    """
    if worker is not None:
        if worker in ("", ".", "..") or "/" in worker:
            raise click.BadParameter("give the name of a directory in PATH, such as runc-overlayfs", param_hint="--worker")
        return [os.path.join(path, worker)]
    try:
        found = find_caches(no_checkpoint, path)
    except (AsyncmigError, ValueError):
        found = Workers(caches=[path])  # what is wrong with it is told when it is opened
    for text in found.passed_over:
        with contextlib.suppress(OSError):  # a terminal that has gone is no reason to leave the caches alone
            click.echo(f"passed over: {text}", err=True)
    if len(found.caches) > 1:
        given = [name for name in _OF_ONE_CACHE if options.get(name) not in (None, "auto")]
        if given:
            names = ", ".join(printable(os.path.basename(cache)) for cache in found.caches)
            raise click.UsageError(
                f"{name_of(given[0])} is about one cache, and PATH holds several: name one with --worker ({names})"
            )
        return found.caches
    return [path]


def act_on_each(caches: list[str], act: Callable[[str], int]) -> int:
    """Call ``act`` for each; the worst of the exit codes.  An error of one cache does not keep the others from their turn."""
    if len(caches) == 1:
        return act(caches[0])
    worst = 0
    for cache in caches:
        try:
            code = act(cache)
        except OptionError:
            raise
        except Interrupted as interrupted:
            if cache != caches[0]:
                interrupted.add_note("the caches before this one are done, those after it were not begun")
            raise
        except AsyncmigError as error:
            complain(error)
            code = exit_code_of(error)
        worst = max(worst, code, key=_BAD_TO_WORST.index)
    return worst
