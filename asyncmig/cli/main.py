"""Entry point, and how errors become exit codes."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import click

from asyncmig._version import __version__
from asyncmig.cli.run import Interrupted
from asyncmig.errors import AsyncmigError, IncompleteMigrationError

EXIT_FAILED = 1
EXIT_INCOMPLETE = 4

_EPILOG = """\b
Exit codes:
  0    done, or nothing to do
  1    failed, nothing was changed (db check: the file is damaged)
  2    wrong usage
  4    failed half-way: nothing is lost, run it again to complete the migration
  130  interrupted (143: terminated), nothing was changed
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="asyncmig")
def cli() -> None:
    """Migrate BuildKit v1 build caches (metadata.db) in place to v2.

    Stop the daemon that uses the cache first.
    """


def _register() -> None:
    from asyncmig.cli import db, migrate, synth  # noqa: PLC0415  (they need `cli`)

    for command in (migrate.migrate, db.db, synth.synth):
        cli.add_command(command)


_register()


def main() -> NoReturn:
    """Run the command line and exit with one of the documented codes."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except Interrupted as interrupted:
        click.echo(f"asyncmig: {interrupted}", err=True)
        code = 128 + interrupted.signal
    except AsyncmigError as error:
        click.echo(f"asyncmig: {error}", err=True)
        code = EXIT_INCOMPLETE if isinstance(error, IncompleteMigrationError) else EXIT_FAILED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough.  Without this, the flush at exit would complain again.
        sys.stdout = None
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
