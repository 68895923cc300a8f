"""Which files of a cache may be touched, by links, kinds of files and owners.

docs/decisions/0009-trust.md has the rules and their reasons.  These functions check names, and the files are opened later.
:func:`check_owners` makes sure that nobody else can put another file there in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from asyncmig.errors import LayoutError, UntrustedError, printable
from asyncmig.layouts.layout import Layout

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_links(layout: Layout) -> None:
    """Raise :class:`UntrustedError` if a link, a pipe or a directory is in the place of a file of the cache.

    Every command calls this, even one that only reads.  Blocks, but never waits for the other end of a pipe.
    """
    for root, path in _files(layout):
        _check_way(root, os.path.dirname(path))
        status = _look(path)
        if status is not None:
            _check_kind(path, status)
    for temporary in layout.temporary:
        status = _look(temporary)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise UntrustedError(f"{printable(temporary)}: a directory, but asyncmig has to write a file there; move it away")
    if not layout.address:
        for algorithm in ("sha256", "sha384", "sha512"):
            _check_way(layout.root, os.path.join(layout.content_directory, "blobs", algorithm))
    for lock in layout.daemon_locks:
        status = _look(lock)
        if status is not None:
            _check_kind(lock, status)


def check_owners(layout: Layout) -> None:
    """Raise :class:`UntrustedError` if others could tamper with what is about to be changed, or if a hard link shares it.

    Call it after :func:`check_links`.
    """
    for _, path in _files(layout):
        status = _look(path)
        if status is not None:
            _check_owner(path, status, _trusted())
            if path in (*layout.edited, layout.journal):
                _check_names(path, status)
    for directory in _written(layout):
        status = _look(directory)
        if status is not None:
            _check_owner(directory, status, _trusted())
            _check_ancestors(directory)


def _files(layout: Layout) -> Iterator[tuple[str, str]]:
    """Every file that is opened, each after the directory that no link may lead out of."""
    for path in (layout.v1, layout.v2, layout.journal):
        yield layout.directory, path
    for path in layout.edited:
        yield layout.root, path


def _written(layout: Layout) -> Iterator[str]:
    """The directories in which files are created or edited."""
    directories = [layout.directory, *(os.path.dirname(path) for path in layout.edited)]
    yield from dict.fromkeys(map(os.path.realpath, directories))


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look at it: {error.strerror}") from error


# -- links and kinds


def _check_way(root: str, directory: str) -> None:
    """Raise if a link on the way from ``root`` to ``directory`` leads out of ``root``.  There are no links above ``root``."""
    place = root
    for name in os.path.relpath(directory, root).split(os.sep):
        place = os.path.join(place, name)
        status = _look(place)
        if status is None:
            return
        if stat.S_ISLNK(status.st_mode):
            real = os.path.realpath(place)
            if os.path.commonpath([os.path.realpath(root), real]) != os.path.realpath(root):
                raise UntrustedError(
                    f"{printable(place)}: a symbolic link to {printable(os.readlink(place))}, which is not in "
                    f"{printable(root)}; asyncmig does not follow links out of it: put the directory itself there "
                    "(mv, or mount --bind)"
                )
            status = _look(real)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise UntrustedError(f"{printable(place)}: not a directory; put the cache's own directory back")


def _check_kind(path: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise UntrustedError(
            f"{printable(path)}: a symbolic link to {printable(os.readlink(path))}; asyncmig does not follow links to files of "
            "a cache: put the file itself there, or give the directory that holds the file"
        )
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UntrustedError(f"{printable(path)}: not a regular file but {kind}; move it away, or put the file back")


# -- owners


def _trusted() -> set[int]:
    return {0, os.geteuid()}


def _check_owner(path: str, status: os.stat_result, trusted: set[int]) -> None:
    if status.st_uid not in trusted:
        raise UntrustedError(
            f"{printable(path)}: belongs to uid {status.st_uid}, but asyncmig runs as uid {os.geteuid()}: that user could "
            f"change it meanwhile. If a daemon of that user made the cache, run asyncmig as uid {status.st_uid}; otherwise "
            f"chown it to uid {os.geteuid()}"
        )
    if status.st_mode & stat.S_IWOTH:
        raise UntrustedError(
            f"{printable(path)}: everybody may write to it, so any user could change it meanwhile; run chmod o-w on it"
        )


def _check_names(path: str, status: os.stat_result) -> None:
    if status.st_nlink > 1:
        name = printable(path)
        raise UntrustedError(
            f"{name}: has {status.st_nlink} names (hard links), probably made for a backup by cp -al or rsync --link-dest. "
            f"asyncmig edits the file in place, which would change the backup, too. Make it a file of its own: "
            f"cp -p {name} {name}.own && mv {name}.own {name}"
        )


def _check_ancestors(directory: str) -> None:
    """Raise if somebody else may write to a directory above: he could replace what is in it, unless it is sticky like /tmp."""
    # In a user namespace the owner of "/" is nobody.  Trust the owner, whoever it is: he controls everything below anyway.
    top = _look("/")
    trusted = _trusted() | {top.st_uid if top else 0}
    place = os.path.dirname(directory)
    while status := _look(place):
        if status.st_uid not in trusted:
            raise UntrustedError(
                f"{printable(place)}: belongs to uid {status.st_uid}, who could replace {printable(directory)} meanwhile; "
                f"if the cache belongs to that user, run asyncmig as uid {status.st_uid}; otherwise chown the directory"
            )
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise UntrustedError(
                f"{printable(place)}: everybody may write to it, so any user could replace {printable(directory)} meanwhile; "
                "run chmod o-w on it (or chmod +t, as for /tmp)"
            )
        if place == os.path.dirname(place):
            return
        place = os.path.dirname(place)
