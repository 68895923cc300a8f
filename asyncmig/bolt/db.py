"""Opening a bolt file, and its transactions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from asyncmig.bolt import format as fmt
from asyncmig.bolt.files import close, status, sync
from asyncmig.bolt.lock import lock
from asyncmig.bolt.pagefile import PageFile
from asyncmig.bolt.space import write_all
from asyncmig.bolt.tx import Tx
from asyncmig.bolt.walk import free_pages
from asyncmig.errors import BucketError, DatabaseError, UncertainCommitError, printable, reason

DEFAULT_PAGE_SIZE = 4096


class Db:
    """An open bolt file, locked as bbolt locks it until :meth:`close`.

    One object serves one thread at a time: any number of read transactions, or one write transaction.  All calls block;
    an async program makes them in a worker thread.
    """

    def __init__(self, fd: int, path: str, *, writable: bool) -> None:
        self.fd = fd
        self.path = path
        self.writable = writable
        self.pages: PageFile | None = None
        """The committed state; ``None`` for a file of 0 bytes."""
        self._new_page_size = DEFAULT_PAGE_SIZE
        self._free: list[int] | None = None
        self._open_transactions = 0
        self._writing = False
        self._broken: str | None = None
        self._settled = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        exclusive: bool = False,
        create: bool = False,
        page_size: int = DEFAULT_PAGE_SIZE,
        lock_timeout: float = 0.0,
        follow: bool = True,
    ) -> Db:
        """Open and lock ``path``: shared for reading, exclusive for writing or if ``exclusive``.

        A file of 0 bytes is a valid empty database; the first write transaction initialises it, with pages of ``page_size``
        bytes (bbolt does so when it opens it).  ``create`` makes a missing file (mode 0600).  ``lock_timeout`` is in seconds,
        0 tries once.  Without ``follow`` the file must not be a symbolic link.

        Raises :class:`DatabaseError` (missing, not a regular file, no permission), :class:`DatabaseLockedError`,
        :class:`CorruptDatabaseError`.
        """
        name = os.fspath(path)
        fd = _open_regular(name, writable=writable, create=create, follow=follow)
        try:
            lock(fd, name, exclusive=writable or exclusive, timeout=lock_timeout)
            db = cls(fd, name, writable=writable)
            db._load(page_size)
        except BaseException:
            close(fd)
            raise
        return db

    def _load(self, page_size: int) -> None:
        if page_size not in (fmt.MIN_PAGE_SIZE << i for i in range(15)):
            raise BucketError(f"page size {page_size} is not a power of two from {fmt.MIN_PAGE_SIZE}")
        self._new_page_size = page_size
        if status(self.fd, self.path).st_size:
            self.reload()

    def _initialise(self) -> None:
        write_all(self.fd, self.path, [fmt.empty_image(self._new_page_size)], 0)
        self.sync()
        self.reload()

    def _settle(self) -> None:
        """Make the committed state durable before the first change.

        Another process may have been killed between the writing of the meta page and its sync: everybody sees its commit, but
        the disk may have the one before, whose pages the next commit takes for free.  The meta page is written again, as it is,
        and not only synced, because after a sync that has failed Linux takes the page for clean, and the next sync does
        nothing.  bbolt lacks this.
        """
        assert self.pages is not None
        offset = self.pages.meta_offset
        write_all(self.fd, self.path, [self.pages.read(fmt.META_SIZE, offset)], offset)
        self.sync()
        self._settled = True

    def note(self) -> str:
        """What an operator may want to know of a meta page that is unusable while the other one is good; "" if both are."""
        if self.pages is None or not self.pages.bad_meta:
            return ""
        return f"{printable(self.path)}: {self.pages.bad_meta}"

    def reload(self) -> None:
        """Read the committed state again."""
        self.pages = PageFile(self.fd, self.path)

    # -- transactions

    @contextmanager
    def view(self) -> Iterator[Tx]:
        """A read transaction."""
        with self._transaction(writable=False) as tx:
            yield tx

    @contextmanager
    def update(self, *, fill_percent: float = 0.5) -> Iterator[Tx]:
        """A write transaction: committed when the block ends, discarded when it raises.

        ``fill_percent`` is how full pages are left when a node is split, as in bbolt.
        """
        size = status(self.fd, self.path).st_size if self.fd >= 0 else 0
        try:
            with self._transaction(writable=True) as tx:
                yield tx
                self.commit(tx, fill_percent)
        except BaseException:
            self._shrink(size)
            raise

    @contextmanager
    def _transaction(self, *, writable: bool) -> Iterator[Tx]:
        self._check_usable(writable)
        if writable and self.pages is None:
            self._initialise()
        if writable and not self._settled:
            self._settle()
        free = self._free_pages() if writable else []
        tx = Tx(self.pages, self.path, free, writable=writable)
        self._open_transactions += 1
        self._writing = writable
        try:
            yield tx
        finally:
            tx.close()
            self._open_transactions -= 1
            self._writing = False

    def _check_usable(self, writable: bool) -> None:
        if self._broken:
            raise DatabaseError(self.path, self._broken)
        if self.fd < 0:
            raise BucketError(f"{self.path}: the database is closed")
        if writable and not self.writable:
            raise BucketError(f"{self.path}: opened for reading only")
        if self._writing or (writable and self._open_transactions):
            raise BucketError(f"{self.path}: another transaction is open")

    def _free_pages(self) -> list[int]:
        if self._free is None:
            assert self.pages is not None
            self._free = free_pages(self.pages)
        return self._free

    def commit(self, tx: Tx, fill_percent: float) -> None:
        """Make what ``tx`` changed durable.

        The order is what makes it atomic: new pages go where the committed state has none, they are synced, and only then
        the 80 bytes of the older meta page are written and synced.
        """
        prepared = tx.prepare(fill_percent)
        if prepared is None:
            return
        meta, free = prepared
        assert self.pages is not None
        end = meta.high_water_mark * meta.page_size
        try:
            if os.fstat(self.fd).st_size < end:
                os.ftruncate(self.fd, end)
        except OSError as error:
            raise DatabaseError(self.path, f"cannot extend to {end} bytes: {error.strerror}") from error
        self.sync()
        # From here on a failure leaves it open which state is the committed one, so the object refuses further use.
        self._broken = "an earlier commit failed half-way; open the file again"
        try:
            write_all(self.fd, self.path, [meta.pack()], (meta.txid % 2) * meta.page_size)
            self.sync()
            self.reload()
        except DatabaseError as error:
            raise UncertainCommitError(self.path, error.cause) from error
        self._free = free  # not before: the pages that this commit frees are in use until it has happened
        self._broken = None

    def _shrink(self, size: int) -> None:
        """Give back what a failed transaction has added behind the committed pages; on a full disk it is needed."""
        if not self.writable or self.fd < 0 or self._broken:
            return
        # Without pages the file had 0 bytes; a part of the first four pages would make it a damaged one.
        end = self.pages.high_water_mark * self.pages.page_size if self.pages else 0
        with suppress(OSError):
            if os.fstat(self.fd).st_size > size:
                os.ftruncate(self.fd, max(size, end))

    def sync(self) -> None:
        """``fdatasync`` the file.  Raises :class:`DatabaseError`."""
        sync(self.fd, self.path)

    # -- end

    def close(self) -> None:
        """Close the file, which releases its lock."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def __enter__(self) -> Db:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open_regular(path: str, *, writable: bool, create: bool, follow: bool) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for its other end.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    flags |= 0 if follow else os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise DatabaseError(path, f"cannot open: {reason(error)}") from error
    except ValueError as error:
        raise DatabaseError(path, f"cannot open: {error}") from error
    try:
        if not stat.S_ISREG(status(fd, path).st_mode):
            raise DatabaseError(path, "not a regular file")
    except BaseException:
        close(fd)
        raise
    return fd
