"""Standard output where it is what a command is for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

from asyncmig.cli.errors import OutputError
from asyncmig.errors import printable


def say(line: str) -> None:
    """Print a line of text.  What comes from files has been escaped where it was put into it; what was forgotten is here."""
    click.echo(printable(line))


@contextmanager
def writing_output() -> Iterator[None]:
    """Raise :class:`OutputError` for what the block can't write to standard output, which is flushed at its end.

    The reader of a pipe (head, less) may have seen enough: that ends the block and is no error.
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
    if sys.stdout is None:  # what Python makes of a stream that was closed before it started
        raise OutputError("it is closed")
    return sys.stdout.buffer
