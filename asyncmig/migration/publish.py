"""Stages build and publish: the new database, complete under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from asyncmig.bolt import Checkpoint, PageFile, verify_pages
from asyncmig.bolt.files import close, sync_directory
from asyncmig.errors import DatabaseError, reason
from asyncmig.migration.cache import Cache


def build(checkpoint: Checkpoint, cache: Cache, target: str, progress: Callable[[int], None]) -> NewDatabase:
    """Write the migrated database beside ``target``, sync it and check it from end to end.

    A left-over of an earlier attempt is replaced.  On any error the new file is removed again.
    """
    new = NewDatabase.create(target, like=cache.database.path)
    try:
        cache.database.write(new.fd, new.path, cache.revision, checkpoint=checkpoint, progress=progress)
        verify_pages(PageFile(new.fd, new.path), checkpoint, lost_pages=True)
    except BaseException:
        new.close()
        raise
    return new


class NewDatabase:
    """A database that is complete on disk but not yet under its name."""

    def __init__(self, fd: int, path: str, target: str) -> None:
        self.fd = fd
        self.path = path
        self.target = target
        self.published = False

    @classmethod
    def create(cls, target: str, *, like: str) -> NewDatabase:
        """An empty file beside ``target`` with the owner and mode of the file ``like``."""
        path = target + ".tmp"
        try:
            model = os.stat(like)
            if os.path.lexists(path):
                os.unlink(path)  # never written through: it might be a link to something else
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DatabaseError(path, f"cannot create it: {reason(error)}") from error
        new = cls(fd, path, target)
        try:
            if (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, model.st_uid, model.st_gid)
            os.fchmod(fd, model.st_mode & 0o777)
        except OSError as error:
            new.close()
            raise DatabaseError(path, f"cannot set owner and mode: {reason(error)}") from error
        return new

    def publish(self) -> None:
        """Give the database its name, durably.  Raises :class:`DatabaseError`."""
        try:
            os.rename(self.path, self.target)
        except OSError as error:
            raise DatabaseError(self.target, f"cannot rename {os.path.basename(self.path)} to it: {reason(error)}") from error
        self.published = True
        sync_directory(os.path.dirname(self.target))

    def close(self) -> None:
        """Close the file, and remove it unless it was published."""
        close(self.fd)
        if not self.published:
            # On a disk that has gone bad this fails, too; what went wrong first is what the user must see.
            with contextlib.suppress(OSError):
                os.unlink(self.path)
