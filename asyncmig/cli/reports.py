"""The file that ``--report`` writes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile

import click

from asyncmig.cli.errors import Interrupted
from asyncmig.errors import IncompleteMigrationError, IncompleteRollbackError, described, printable
from asyncmig.migration.report import versions

_CACHE_FILE = re.compile(r".*\.db(\W.*)?|buildkitd\.lock|workerid", re.DOTALL)
"""Names of the files of a cache: databases with all that may stand beside them (.tmp, .journal, .before), locks and ids."""


_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def goes_to_output(path: str | None) -> bool:
    """Whether the report is to go to standard output, and no text with it."""
    return path in _OUTPUT


def check_report_path(path: str | None) -> None:
    """Refuse a report that can't be written, or that would replace something else, before anything is migrated."""
    if path is None or goes_to_output(path):
        return
    if not path:
        raise click.BadParameter("it is empty", param_hint="--report")
    real = os.path.realpath(path)
    if os.path.isdir(real) or not os.access(os.path.dirname(real), os.W_OK):
        raise click.BadParameter(f"can't write {printable(path)}: no such directory, or no permission", param_hint="--report")
    # By its name, because at the end the file may be there although it is not now: the new database, which the report would
    # replace, or which it would be taken for if the migration has failed.  A database of 0 bytes looks like a new report.
    if any(_CACHE_FILE.fullmatch(os.path.basename(os.path.abspath(p))) for p in (path, real)):
        raise click.BadParameter(
            f"{printable(path)} has the name of a file of a cache; choose another name, such as report.json",
            param_hint="--report",
        )
    if os.path.islink(path):
        raise click.BadParameter(f"{printable(path)} is a link; name the file itself", param_hint="--report")
    if os.path.lexists(path) and not _is_report(path):
        raise click.BadParameter(f"{printable(path)} exists and is not a report; choose another name", param_hint="--report")


def _is_report(path: str) -> bool:
    if not os.path.isfile(path):
        return False  # opening a FIFO would wait for its other end
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith((b'{"report_version"', b'{\n  "report_version"')) or not os.path.getsize(
                path
            )
    except OSError:
        return False


class Reports:
    """The reports of a command, one a cache, for ``path``, if one is wanted.

    One report is an object as it is; several are an object with a list of them in ``caches``.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._contents: list[dict[str, object]] = []

    @property
    def go_to_output(self) -> bool:
        """Whether they go to standard output, and no text with them."""
        return goes_to_output(self.path)

    def add(self, content: dict[str, object]) -> None:
        """Add one; the file is written anew each time, so that it has what is done already if the next one fails."""
        self._contents.append(content)
        if self.path is not None and not self.go_to_output:
            write_report(self.path, self._whole())

    def end(self) -> None:
        """Print them, if they go to standard output.  Raises :class:`OSError`."""
        if self.go_to_output and self._contents:
            click.echo(json.dumps(self._whole(), indent=2))

    def _whole(self) -> dict[str, object]:
        if len(self._contents) == 1:
            return self._contents[0]
        return {**versions(), "caches": self._contents}


def write_report(path: str, content: dict[str, object]) -> None:
    """Write it into a file; what fails is only warned of, because the work is done."""
    try:
        _replace(path, content)
    except (OSError, MemoryError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or described(error)
        with contextlib.suppress(OSError, MemoryError):
            click.echo(f"asyncmig: warning: cannot write the report: {printable(path)}: {reason}", err=True)


def _replace(path: str, content: dict[str, object]) -> None:
    """Written beside and renamed: whoever reads the report meanwhile, or after a full disk, sees a whole one."""
    directory, name = os.path.split(os.path.abspath(path))
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=directory)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fchmod(fd, 0o666 & ~_umask())
            os.fsync(fd)
        if os.path.lexists(path) and (os.path.islink(path) or not _is_report(path)):
            raise FileExistsError(errno.EEXIST, "something that is not a report has been put there meanwhile")
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """It can be read only by setting it; no other thread makes files when a command writes its report."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def failure(error: Exception) -> dict[str, object]:
    """The report of a command that has failed."""
    outcomes: dict[type[Exception], str] = {
        IncompleteMigrationError: "incomplete",
        IncompleteRollbackError: "incomplete",
        Interrupted: "interrupted",
    }
    return {
        **versions(),
        "outcome": outcomes.get(type(error), "failed"),
        "error": str(error),
        "error_type": type(error).__name__,
    }
