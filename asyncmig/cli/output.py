"""Standard output of commands whose purpose is to print something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

from asyncmig.cli.errors import OutputError
from asyncmig.errors import printable


def say(line: str) -> None:
    """Print a line of text.

    Callers have already escaped text that comes from files; escaping the whole line catches what they forgot.
    """
    click.echo(printable(line))


@contextmanager
def writing_output() -> Iterator[None]:
    """Raise :class:`OutputError` if the block can't write to standard output.  Flushes it at the end.

    The reader of a pipe (head, less) may close it early: that ends the block and is not an error.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


def binary_output() -> BinaryIO:
    """Standard output for bytes.  Raises :class:`OutputError` if it is closed."""
    if sys.stdout is None:  # Python does this if the stream was closed before Python started
        raise OutputError("it is closed")
    return sys.stdout.buffer
