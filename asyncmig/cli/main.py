"""Entry point, and how errors become exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import NoReturn, TextIO

import click

from asyncmig._version import __version__
from asyncmig.cli.errors import EXIT_FAILED, Interrupted, OutputError, complain, exit_code_of
from asyncmig.errors import (
    AsyncmigError,
    OptionError,
)

EXIT_OUTPUT = os.EX_IOERR

_EPILOG = """\b
Exit codes:
  0    done, or nothing to do
  1    failed, nothing was changed (plan: the migration would refuse to begin; db check: the file is damaged)
  2    wrong usage
  3    verify has findings
  4    failed half-way, nothing is lost: run the command again to complete it
  74   the result could not be written to standard output (plan, --dry-run, verify, db check,
       db dump)
  130  interrupted, nothing was changed (143: terminated, 129: hung up)
"""


_COMMANDS = {
    "migrate": "asyncmig.cli.migrate",
    "plan": "asyncmig.cli.migrate",
    "verify": "asyncmig.cli.verify",
    "rollback": "asyncmig.cli.migrate",
    "db": "asyncmig.cli.db",
    "synth": "asyncmig.cli.synth",
}


class _Group(click.Group):
    """Imports a command when it is asked for: all of them take as long as the rest of the start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in alphabetical order as click has it."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name in _COMMANDS:
            return _imported(cmd_name)
        for name in _COMMANDS:  # click looks through those that it has been given for one that may have been meant
            self.add_command(_imported(name))
        return None


def _imported(name: str) -> click.Command:
    command: click.Command = getattr(import_module(_COMMANDS[name]), name)
    return command


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="asyncmig")
def cli() -> None:
    """Migrate BuildKit v1 build caches (metadata.db) to v2, in place.

    First stop the daemon that uses the cache.
    """


def main() -> NoReturn:
    """Run the command line and exit with one of the documented codes."""
    code: object = 0
    _fill_closed_streams()
    try:
        with _usage_errors():
            code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        code = error.exit_code
        with contextlib.suppress(OSError):  # the exit code says it, too
            if sys.stderr is not None:  # otherwise click prints it to standard output
                error.show()
    except SystemExit:
        code = 0  # click's end, with another code, where the reader of a help text has seen enough
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
        complain("SIGINT: stopped")
    except Interrupted as interrupted:
        code = 128 + interrupted.signal
        complain(interrupted)
    except OutputError as error:
        code = EXIT_OUTPUT
        complain(error)
    except AsyncmigError as error:
        code = exit_code_of(error)
        complain(error)
    except (MemoryError, OSError, ImportError, SystemError) as error:
        # What is short before a verb begins: files to load a command from, or memory for it.
        code = EXIT_FAILED
        complain(error)
    _settle(sys.stdout)
    _settle(sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fill_closed_streams() -> None:
    """Open something harmless in place of a standard stream that is closed.

    The next file would get its number, and what is written to "standard error" would go into a database.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Make wrong usage of an argument that the library refuses, with its name on the command line."""
    try:
        yield
    except OptionError as error:
        from asyncmig.cli.options import name_of  # noqa: PLC0415  (it takes as long to import as the rest of the start)

        raise click.UsageError(f"{' and '.join(map(name_of, error.names))} {error.cause}") from None


def _settle(stream: TextIO | None) -> None:
    """Flush, and drop what can't be written: at exit Python would replace our exit code for it.

    ``None`` is what Python makes of a stream that was closed before it started.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
