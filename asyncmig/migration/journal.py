"""Which leases were there before a migration began, for the run that may have to complete it.

Upstream leaves a lease that exists as it is, and ``upstream`` semantics do the same.  Where leases are made by single calls, a
run that is killed leaves half-made leases of its own behind, and the next run could not tell them from foreign ones: upstream's
cannot, and loses data.  So the first run notes the leases it found in a file beside the new database, before it makes any.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection

from asyncmig.errors import DatabaseError
from asyncmig.migration.publish import sync_directory

_VERSION = 1


class Journal:
    """The file beside the v2 database ``target``.  All methods block, and raise :class:`DatabaseError`."""

    def __init__(self, target: str) -> None:
        self.path = target + ".journal"

    def read(self) -> frozenset[str] | None:
        """The leases that an interrupted run found; ``None`` if there was no such run."""
        try:
            with open(self.path, encoding="ascii") as file:
                content = json.load(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatabaseError(self.path, f"cannot read: {error.strerror}") from error
        except ValueError:
            content = None
        leases = content.get("existing_leases") if isinstance(content, dict) else None
        if not isinstance(leases, list) or content.get("asyncmig_journal") != _VERSION:
            cause = "not a journal of this version of asyncmig; complete the migration with the version that wrote it"
            raise DatabaseError(self.path, cause)
        return frozenset(map(str, leases))

    def write(self, leases: Collection[str]) -> None:
        """Note, durably, that these leases are there and are not ours.

        After an interrupted run these are those it noted, less what has gone since: such a lease is ours when we make it.
        """
        temporary = self.path + ".tmp"
        content = {"asyncmig_journal": _VERSION, "existing_leases": sorted(leases)}
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(fd)
            os.rename(temporary, self.path)
            sync_directory(os.path.dirname(self.path))
        except OSError as error:
            raise DatabaseError(self.path, f"cannot write: {error.strerror}") from error

    def remove(self) -> None:
        """All leases are complete; what is done twice from now on does no harm."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        except OSError as error:
            raise DatabaseError(self.path, f"cannot remove: {error.strerror}") from error
