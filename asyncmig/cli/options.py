"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

from asyncmig.layouts.detect import LAYOUTS
from asyncmig.migration.decisions import OnBroken
from asyncmig.migration.semantics import DEFAULT, SEMANTICS

Command = TypeVar("Command", bound=Callable[..., object])

PATH = click.Path(readable=False)
"""A path of any kind.  Whether it can be read is found out by whoever opens it: that is a failure (1), not wrong usage (2)."""


def cache_options(command: Command) -> Command:
    """Where the cache is: ``path``, ``layout``, ``snapshotter``, ``namespace``, ``address``, ``containerd_root``,
    ``concurrency``, ``timeout``."""
    return _decorated(command, *_CACHE)


def semantics_options(command: Command) -> Command:
    """What to write: ``semantics``, ``on_broken``, ``max_dropped``, ``strip_leftovers``."""
    return _decorated(command, *_SEMANTICS)


def trust_option(command: Command) -> Command:
    """Whose files may be changed: ``trust_others``."""
    option = click.option(
        "--trust-others",
        is_flag=True,
        help="Accept that files or directories of the cache belong to other users, or that everybody may write to them.  Make "
        "sure that nobody changes them meanwhile.  Links out of the cache and hard links are refused all the same.",
    )
    return option(command)


def running_options(command: Command) -> Command:
    """How to run: ``progress`` and ``backend``."""
    return _decorated(command, *_RUNNING)


def report_option(command: Command) -> Command:
    """Where the report goes: ``report``."""
    text = "Also write a report to FILE, in JSON; -: to standard output, in place of the text."
    option = click.option("--report", type=PATH, metavar="FILE", help=text)
    return option(command)


def check_not_empty(**values: str | None) -> None:
    """Raise :class:`click.BadParameter` for a path that is given and empty: it would mean the working directory."""
    for name, value in values.items():
        if value == "":
            raise click.BadParameter("it is empty", param_hint=name_of(name))


def name_of(argument: str) -> str:
    """An argument of the library as the command line has it."""
    return argument.upper() if argument in ("path", "file", "new") else f"--{argument.replace('_', '-')}"


def _decorated(command: Command, *decorators: Callable[[Any], Any]) -> Command:
    decorated: Command = reduce(lambda inner, decorator: decorator(inner), reversed(decorators), command)
    return decorated


drop_limit_option = click.option(
    "--max-dropped",
    type=click.FloatRange(0, 100),
    default=5,
    show_default=True,
    metavar="PERCENT",
    help="Refuse to begin if more than PERCENT of the cache would be lost, or is missing.",
)

_CACHE = (
    click.argument("path", type=PATH),
    click.option(
        "--worker",
        metavar="NAME",
        help="Act on this worker directory in PATH alone.  Default: on every one that holds a cache, one after the other.",
    ),
    click.option("--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="The kind of cache."),
    click.option("--snapshotter", metavar="NAME", help="Name of the snapshotter.  Default: derived from the directory name."),
    click.option(
        "--namespace",
        metavar="NS",
        help="Namespace in containerd.  [default: $CONTAINERD_NAMESPACE if the stores are in a containerd, or buildkit]",
    ),
    click.option(
        "--address",
        metavar="SOCKET",
        help="Socket of the running containerd that holds the stores.  [default: $CONTAINERD_ADDRESS, or "
        "/run/containerd/containerd.sock]",
    ),
    click.option(
        "--containerd-root",
        type=PATH,
        metavar="DIR",
        help="Root directory of a stopped containerd that holds the stores.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 1024),
        default=16,
        show_default=True,
        metavar="N",
        help="Make at most N calls at a time to a running containerd.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0, 86400),
        default=120,
        show_default=True,
        metavar="SECONDS",
        help="Wait so long for a running containerd that has gone away or does not answer.",
    ),
)

_SEMANTICS = (
    click.option(
        "--semantics",
        type=click.Choice(sorted(SEMANTICS)),
        default=DEFAULT.name,
        show_default=True,
        help="What to write: exactly what BuildKit's own migration wrote (upstream), or that without its defects (hardened).",
    ),
    click.option(
        "--on-broken",
        type=click.Choice([choice.value for choice in OnBroken]),
        default=OnBroken.REPAIR.value,
        show_default=True,
        help="What to do about broken records.  This option and the next two need --semantics hardened.",
    ),
    drop_limit_option,
    click.option(
        "--strip-leftovers",
        is_flag=True,
        help="Also remove v1's label from what belongs to no record, so that it can be collected.  Don't use it if another "
        "v1 cache is in the same namespace of the same containerd.",
    ),
)

_RUNNING = (
    click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="How to show progress on standard error.  auto: bars on a terminal, nothing elsewhere.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["asyncio", "trio"]),
        default="asyncio",
        show_default=True,
        help="The event loop to run on.",
    ),
)
