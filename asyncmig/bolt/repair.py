"""A sound copy of a file whose data are whole, although its freelist or one of its meta pages is not.

What is free follows from what is in use.  Where a meta page is lost, the state of the other one is whole: bbolt reuses none of
its pages before the commit after the next.  Everything else is data, and nothing replaces those.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from asyncmig.bolt.check import CheckResult, check, check_pages
from asyncmig.bolt.db import Db
from asyncmig.bolt.files import close, status, sync_directory
from asyncmig.bolt.rebuild import rebuild
from asyncmig.bolt.walk import Checkpoint, no_checkpoint
from asyncmig.errors import DatabaseError, StrPath


def repair(path: StrPath, target: StrPath, *, checkpoint: Checkpoint = no_checkpoint) -> CheckResult:
    """Write a sound copy of the file ``path`` to the new file ``target``; returns what was wrong with ``path``.

    Nothing is written if nothing is wrong: no finding, no note.  ``path`` is read under a shared lock and never written, and
    ``target`` must not exist.  It gets owner and mode of ``path``, is checked from end to end, and removed after an error.

    Raises :class:`CorruptDatabaseError` where data are damaged, otherwise :class:`DatabaseError`.  Blocking.
    """
    source, new = os.fspath(path), os.fspath(target)
    with Db.open(source) as db:
        if db.pages is None:
            return CheckResult()
        found = check_pages(db.pages, checkpoint=checkpoint)
        if not found.mendable:
            first = next(finding for finding in found.findings if not finding.mendable)
            raise db.pages.corrupt(first.page, first.cause)
        if found.clean and not found.notes:
            return found
        fd = _create(new)
        try:
            _take_after(fd, new, status(db.fd, source))
            rebuild(db.pages, fd, new, {}, checkpoint=checkpoint)
            written = check(new, checkpoint=checkpoint)
            if not written.clean or written.notes or written.keys != found.keys or written.buckets != found.buckets:
                raise DatabaseError(new, "the copy is not what was written; check the disk and the memory of this machine")
            sync_directory(os.path.dirname(new))
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise
        finally:
            close(fd)
    return found


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DatabaseError(path, f"cannot make it: {reason}") from error


def _take_after(fd: int, path: str, original: os.stat_result) -> None:
    """Owner and mode of the original: a daemon that is not root must be able to open what replaces its database."""
    try:
        made = os.fstat(fd)
        if (made.st_uid, made.st_gid) != (original.st_uid, original.st_gid):
            os.fchown(fd, original.st_uid, original.st_gid)
        os.fchmod(fd, stat.S_IMODE(original.st_mode))
    except OSError as error:
        raise DatabaseError(path, f"cannot give it owner and mode of the original: {error.strerror}; run it as root") from error
