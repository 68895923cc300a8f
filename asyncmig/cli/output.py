"""Standard output where it is what a command is for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from asyncmig.cli.errors import OutputError
from asyncmig.errors import printable


def say(line: str) -> None:
    """Print a line of text.  What comes from files has been escaped where it was put into it; what was forgotten is here."""
    click.echo(printable(line))


@contextmanager
def writing_output() -> Iterator[None]:
    """Raise :class:`OutputError` for what the block can't write to standard output, which is flushed at its end.

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
