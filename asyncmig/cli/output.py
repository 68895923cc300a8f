"""Standard output of commands whose purpose is to print something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

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

    The reader of a pipe (head, less) may have seen enough: that ends the block and is no error.  So nothing that is needed
    behind the block may be computed in it.
    """
    if sys.stdout is None:  # what Python makes of a stream that was closed before it started
        raise OutputError("it is closed")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


class Lines:
    """Lines for standard output from a run that goes on if they can't be written: it still has a report and an exit code."""

    def __init__(self) -> None:
        self._failed: OSError | None = None

    def write(self, line: str) -> None:
        """Write a line, unless one before could not be written."""
        if self._failed is None:
            try:
                click.echo(line)
            except OSError as error:
                self._failed = error

    def end(self) -> None:
        """Raise :class:`OutputError` if something could not be written, unless its reader has seen enough."""
        with writing_output():
            if self._failed is not None:
                raise self._failed
