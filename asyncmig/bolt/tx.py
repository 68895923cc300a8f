"""One transaction: what it has read, what it has changed, and where changed pages go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from asyncmig.bolt.bucket import Bucket
from asyncmig.bolt.format import FREELIST, NO_FREELIST, PAGE_HEADER_SIZE, Meta, encode_page
from asyncmig.bolt.node import Child, Node
from asyncmig.bolt.pagefile import Page, PageFile, encode_freelist, freelist_pages
from asyncmig.bolt.space import PageWriter, Space
from asyncmig.bolt.walk import check_range
from asyncmig.errors import BucketError, CorruptDatabaseError


class Tx:
    """A transaction over the committed state ``pages``.  :class:`Db` makes transactions.

    ``pages`` is ``None`` for an empty file that is only read.  Pages are decoded when they are needed.  A write transaction
    keeps the nodes that it has changed until the commit, or until :meth:`Bucket.spill_child`.
    """

    def __init__(self, pages: PageFile | None, path: str, free: list[int], *, writable: bool) -> None:
        self.pages = pages
        self.path = path
        self.writable = writable
        self.open = True
        self._freed: list[int] = []
        self._writer: PageWriter | None = None
        if writable:
            assert pages is not None
            space = Space(free, pages.high_water_mark)
            self._writer = PageWriter(pages.fd, path, pages.page_size, space)
        root, sequence = (pages.meta.root, pages.meta.sequence) if pages else (0, 0)
        self.root = Bucket(self, root, sequence)

    # -- the root bucket, with the names of bbolt's Tx

    def bucket(self, name: bytes) -> Bucket | None:
        """The top-level bucket ``name``."""
        return self.root.bucket(name)

    def path_bucket(self, *names: bytes) -> Bucket | None:
        """The bucket reached by following ``names`` from the root."""
        bucket: Bucket | None = self.root
        for name in names:
            bucket = bucket.bucket(name) if bucket else None
        return bucket

    def create_bucket(self, name: bytes) -> Bucket:
        """Create a top-level bucket."""
        return self.root.create_bucket(name)

    def create_path(self, *names: bytes) -> Bucket:
        """The bucket reached by following ``names`` from the root; missing ones are created."""
        bucket = self.root
        for name in names:
            bucket = bucket.create_bucket_if_not_exists(name)
        return bucket

    def delete_bucket(self, name: bytes) -> None:
        """Delete a top-level bucket and everything in it."""
        self.root.delete_bucket(name)

    # -- services for Bucket

    def check_open(self) -> None:
        """Raise :class:`BucketError` unless the transaction is running."""
        if not self.open:
            raise BucketError(f"{self.path}: the transaction has ended")

    def check_writable(self) -> None:
        """Raise :class:`BucketError` unless the transaction is running and may write."""
        self.check_open()
        if not self.writable:
            raise BucketError(f"{self.path}: the transaction is read-only")

    @contextmanager
    def indivisible(self) -> Iterator[None]:
        """For a change that must not be committed in part: ends the transaction if the block raises."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def writer(self) -> PageWriter:
        """Writes the pages of this transaction."""
        self.check_writable()
        assert self._writer is not None
        return self._writer

    @property
    def page_size(self) -> int:
        """Bytes per page."""
        return self.pages.page_size if self.pages else 4096

    def load(self, page_id: int, low: bytes | None, high: bytes | None, depth: int) -> Node:
        """Decode a tree page and check its keys against the branch keys around it.

        The check also bounds every walk on a damaged file: keys of different pages can't overlap, so no page is read twice.
        """
        pages = self.file
        page, is_leaf = self.tree_page(page_id)
        keys: list[bytes]
        values: list[bytes] | list[int]
        keys, values = pages.leaf(page) if is_leaf else pages.branch(page)
        check_range(pages, page_id, keys, low, high, depth)
        return Node(is_leaf, keys, values, (page_id, page.overflow), dirty=False)  # type: ignore[arg-type]

    @property
    def file(self) -> PageFile:
        """The file; only for transactions that have one with pages."""
        assert self.pages is not None
        return self.pages

    def tree_page(self, page_id: int) -> tuple[Page, bool]:
        """A branch or leaf page, and whether it is a leaf.  This transaction may have written the page."""
        return self._file_with(page_id).tree_page(page_id)

    def single_leaf(self, page_id: int) -> tuple[Sequence[bytes], Sequence[bytes]] | None:
        """Keys and values of a tree that is one page; ``None`` for a larger tree.  See :meth:`PageFile.single_leaf`."""
        return self._file_with(page_id).single_leaf(page_id)

    def _file_with(self, page_id: int) -> PageFile:
        """The file.  Flushes page ``page_id`` first if this transaction has written it."""
        pages = self.file
        if self._writer:
            self._writer.flush_page(page_id)
            pages.high_water_mark = self._writer.space.high_water_mark
        return pages

    def nodes(self, root: Child) -> Iterator[Node]:
        """All nodes of a tree: each branch before the nodes below it, leaves in the order of their keys."""
        stack: list[tuple[Child, bytes | None, bytes | None, int]] = [(root, None, None, 0)]
        while stack:
            node, low, high, depth = stack.pop()
            if isinstance(node, int):
                node = self.load(node, low, high, depth)
            yield node
            if not node.leaf:
                below = zip(node.children, node.keys, [*node.keys[1:], high], strict=True)
                stack += reversed([(child, key, end, depth + 1) for child, key, end in below])

    def free(self, node: Node) -> None:
        """Free the pages of ``node`` when this transaction is committed.  The transaction itself does not use them again."""
        if node.pages:
            self.free_pages(*node.pages)
            node.pages = None

    def free_pages(self, first: int, overflow: int) -> None:
        """Free a page and its overflow pages when this transaction is committed."""
        self._freed.extend(range(first, first + overflow + 1))

    # -- the end

    def prepare(self, fill_percent: float) -> tuple[Meta, list[int]] | None:
        """Write all changed pages and the freelist; return the meta to commit and the pages that are free after the commit.

        Returns ``None`` if nothing was changed.  Raises :class:`CorruptDatabaseError` if a page would be freed twice, which
        means that the file was damaged before.
        """
        self.check_writable()
        pages, writer = self.pages, self.writer
        assert pages is not None
        old = pages.meta
        root, sequence = self.root.spill_root(fill_percent)
        if root == old.root and sequence == old.sequence:
            return None
        free, freelist = self._write_freelist(old)
        writer.flush()
        meta = Meta(old.page_size, old.flags, root, sequence, freelist, writer.space.high_water_mark, old.txid + 1)
        return meta, free

    def _write_freelist(self, old: Meta) -> tuple[list[int], int]:
        writer, pages = self.writer, self.pages
        assert pages is not None
        if old.freelist == NO_FREELIST:
            return self._merge_free(writer.space.unused()), NO_FREELIST
        stored = pages.page(old.freelist)
        self._freed.extend(range(stored.id, stored.id + stored.overflow + 1))
        count = freelist_pages(writer.space.unused_count() + len(self._freed), old.page_size)
        freelist = writer.space.take(count)
        free = self._merge_free(writer.space.unused())
        stated, payload = encode_freelist(free)
        image = encode_page(freelist, FREELIST, stated, payload, old.page_size)
        # The list may have become shorter than estimated, but its pages are taken already, so fill them.
        padding = bytes(count * old.page_size - len(image))
        overflow = (count - 1).to_bytes(4, "little")
        writer.put(freelist, image[: PAGE_HEADER_SIZE - 4] + overflow + image[PAGE_HEADER_SIZE:] + padding)
        return free, freelist

    def _merge_free(self, unused: list[int]) -> list[int]:
        free = sorted(unused + self._freed)
        for a, b in pairwise(free):
            if a == b:
                raise CorruptDatabaseError(self.path, a, "would be freed twice: it is referenced twice or free and in use")
        return free

    def close(self) -> None:
        """End the transaction.  From now on its handles raise :class:`BucketError`."""
        self.open = False
        if self.pages:
            self.pages.high_water_mark = self.pages.meta.high_water_mark
