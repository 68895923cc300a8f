"""Which files of a cache may be touched, by links, kinds of files and owners.

docs/decisions/0009-trust.md has the rules and their reasons.  These functions check names, and the files are opened later.
:func:`check_owners` makes sure that nobody else can put another file there in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from asyncmig.errors import LayoutError, UntrustedError, printable, reason
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


def check_owners(layout: Layout, *, trust_others: bool = False) -> None:
    """Raise :class:`UntrustedError` where somebody else could meddle with what is about to be changed, or has a copy of it.

    With ``trust_others`` it is the caller's business who could meddle.  To be called after :func:`check_links`.
    """
    for _, path in _files(layout):
        status = _look(path)
        if status is not None:
            if not trust_others:
                _check_owner(path, status, layout)
            if path in (*layout.edited, layout.journal):
                _check_names(path, status)
    for directory in () if trust_others else written(layout):
        status = _look(directory)
        if status is not None:
            _check_owner(directory, status, layout)
            _check_ancestors(directory, layout)


def _files(layout: Layout) -> Iterator[tuple[str, str]]:
    """Every file that is opened, each after the directory that no link may lead out of."""
    for path in (layout.v1, layout.v2, layout.journal):
        yield layout.directory, path
    for path in layout.edited:
        yield layout.root, path


def written(layout: Layout) -> Iterator[str]:
    """The directories in which something is made or edited, links resolved."""
    directories = [layout.directory, *(os.path.dirname(path) for path in layout.edited)]
    yield from dict.fromkeys(map(os.path.realpath, directories))


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look: {reason(error)}") from error


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


def _check_owner(path: str, status: os.stat_result, layout: Layout) -> None:
    if status.st_uid not in _trusted():
        raise UntrustedError(
            f"{printable(path)}: belongs to uid {status.st_uid}, and this is uid {os.geteuid()}: a user could change it "
            f"meanwhile. {_other_owner(path, status, layout)}"
        )
    if status.st_mode & stat.S_IWOTH:
        raise UntrustedError(
            f"{printable(path)}: everybody may write to it, and could change it meanwhile; {_open_to_all(path, status, 'o-w')}"
        )


def _check_names(path: str, status: os.stat_result) -> None:
    if status.st_nlink > 1:
        name = printable(path)
        raise UntrustedError(
            f"{name}: has {status.st_nlink} names (hard links), probably made for a backup by cp -al or rsync --link-dest. "
            f"asyncmig edits the file in place, which would change the backup, too. Make it a file of its own: "
            f"cp -p {name} {name}.own && mv {name}.own {name}"
        )


def _check_ancestors(directory: str, layout: Layout) -> None:
    """Who may write to a directory may replace what is in it, unless it is sticky, as /tmp is."""
    # In a user namespace the owner of the root directory is nobody; whoever it is has everything below it in hand.
    top = _look("/")
    trusted = _trusted() | {top.st_uid if top else 0}
    for place in _above(directory):
        status = _look(place)
        if status is None:
            return
        if status.st_uid not in trusted:
            raise UntrustedError(
                f"{printable(place)}: belongs to uid {status.st_uid}, who could replace {printable(directory)} in it "
                f"meanwhile. {_other_owner(place, status, layout)}"
            )
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise UntrustedError(
                f"{printable(place)}: everybody may write to it, and could replace {printable(directory)} in it meanwhile; "
                f"{_open_to_all(place, status, '+t')}"
            )


def _above(path: str) -> Iterator[str]:
    while path != (path := os.path.dirname(path)):
        yield path


# -- what the user who runs it can do about it


_ACCEPT = "or stop whatever else uses these files and accept the risk: --trust-others"


def _other_owner(path: str, status: os.stat_result, layout: Layout) -> str:
    """What to do about a file or directory of another user."""
    owner, group, name = status.st_uid, status.st_gid, printable(path)
    if os.geteuid() != 0:
        return f"If that user's daemon has made the cache, run asyncmig as uid {owner}; {_ACCEPT}"
    barrier = _barrier(owner, group, layout)
    if barrier:
        return (
            f"If that user's daemon has made the cache, stop it and accept the risk: --trust-others (asyncmig can't run as uid "
            f"{owner}, who has no access to {printable(barrier)}); if not, run 'chown 0 {name}'"
        )
    return (
        f"If that user's daemon has made the cache, run asyncmig as uid {owner}, with 'setpriv --reuid={owner} --regid={group} "
        f"--clear-groups' before the command; if not, run 'chown 0 {name}'; {_ACCEPT}"
    )


def _open_to_all(path: str, status: os.stat_result, mode: str) -> str:
    """What to do about a file or directory that everybody may write to."""
    user, name = os.geteuid(), printable(path)
    if user in (0, status.st_uid):
        return f"run 'chmod {mode} {name}', {_ACCEPT}"
    # Without o-w a user who is not the owner could not write to it either.
    command = f"chmod +t {name}" if mode == "+t" else f"chown {user} {name} && chmod o-w {name}"
    return f"let root run '{command}', {_ACCEPT}"


def _barrier(user: int, group: int, layout: Layout) -> str:
    """What would keep that user from working on the cache, by the mode bits; "" if nothing would."""
    wanted = {layout.v1: 4, layout.v2: 4, layout.journal: 6} | dict.fromkeys(layout.edited, 6)
    directories = list(written(layout))
    wanted |= dict.fromkeys((above for directory in directories for above in _above(directory)), 1)
    wanted |= dict.fromkeys(directories, 7)
    for path in sorted(wanted):
        status = _look(path)
        if status is not None and not _may(user, group, status, wanted[path]):
            return path
    return ""


def _may(user: int, group: int, status: os.stat_result, wanted: int) -> bool:
    shift = 6 if status.st_uid == user else 3 if status.st_gid == group else 0
    return status.st_mode >> shift & wanted == wanted
