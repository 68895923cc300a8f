"""What ends a command, how it is told, and with which exit code."""

from __future__ import annotations

import contextlib
import os
import signal

import click

from asyncmig.errors import (
    MORE_MEMORY,
    AsyncmigError,
    IncompleteMigrationError,
    IncompleteRollbackError,
    described,
    printable,
)

EXIT_FAILED = 1
EXIT_FINDINGS = 3
EXIT_INCOMPLETE = 4


class Interrupted(Exception):
    """A signal has ended the command before it changed anything."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"{received.name}: stopped, nothing was changed")
        self.signal = received


class OutputError(Exception):
    """Standard output can't be written."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"cannot write to standard output: {cause}")


def exit_code_of(error: AsyncmigError) -> int:
    """The documented code."""
    return EXIT_INCOMPLETE if isinstance(error, IncompleteMigrationError | IncompleteRollbackError) else EXIT_FAILED


_NO_MEMORY = f"asyncmig: {MORE_MEMORY}\n".encode()
"""Made beforehand: there may be too little left to escape and join a text in, for the caught error holds all that there was."""


def complain(error: BaseException | str) -> None:
    """Tell it on standard error."""
    with contextlib.suppress(OSError):
        try:
            text = error if isinstance(error, str) else "\n".join((described(error), *getattr(error, "__notes__", ())))
            first, *notes = map(printable, text.split("\n"))
            click.echo("\n".join((f"asyncmig: {first}", *notes)), err=True)
        except MemoryError:
            os.write(2, _NO_MEMORY)
