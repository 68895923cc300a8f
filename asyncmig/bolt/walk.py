"""Walking whole trees, every page at most once.

A bucket is a B+tree of branch and leaf pages; leaf elements may be buckets again.  A damaged file can contain cycles and pages
that are referenced many times, so a walk marks each page it visits and refuses to visit one twice: that bounds time and memory
on any input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from asyncmig.bolt.format import MAX_TREE_DEPTH, BucketValue, Malformed, decode_inline
from asyncmig.bolt.pagefile import PageFile
from asyncmig.errors import CorruptDatabaseError

Checkpoint = Callable[[], None]
"""Called often by long computations; raises to stop them."""


def no_checkpoint() -> None:
    """The checkpoint of callers that cannot be stopped."""


@dataclass(slots=True)
class Leaf:
    """One leaf page of a bucket."""

    page: int
    keys: Sequence[bytes]
    values: Sequence[bytes]


class Walker:
    """Walks trees of one file and remembers in :attr:`seen` (a byte per page) which pages belong to them.

    Raises :class:`CorruptDatabaseError` at the first problem; a subclass may override :meth:`problem` to go on instead.
    Raises :class:`DatabaseError` where memory does not suffice; :class:`PageFile` sees to it that this takes a large file.
    """

    def __init__(self, pages: PageFile, checkpoint: Checkpoint = no_checkpoint) -> None:
        self.pages = pages
        try:
            self.seen = bytearray(pages.high_water_mark)
        except MemoryError:
            raise pages.out_of_memory() from None
        self.seen[0:2] = b"\1\1"
        self.checkpoint = checkpoint

    def problem(self, error: CorruptDatabaseError) -> None:
        """What to do about a problem.  If this returns, the damaged part is passed over."""
        raise error

    def mark(self, first: int, end: int) -> None:
        """Note that these pages are in use; raises if one of them already was."""
        try:
            if any(self.seen[first:end]):
                raise self.pages.corrupt(first, "referenced twice")
            self.seen[first:end] = b"\1" * (end - first)
        except MemoryError:
            raise self.pages.out_of_memory() from None

    def leaves(self, root: int) -> Iterator[Leaf]:
        """The leaf pages of the bucket with root page ``root``, in key order.  Nested buckets are not entered."""
        # Each entry: page, smallest key allowed, key that it must stay below, levels above it.
        stack: list[tuple[int, bytes | None, bytes | None, int]] = [(root, None, None, 0)]
        while stack:
            self.checkpoint()
            page_id, low, high, depth = stack.pop()
            try:
                page, is_leaf = self.pages.tree_page(page_id, self.mark)
                keys: list[bytes]
                if is_leaf:
                    keys, values = self.pages.leaf(page)
                    self.check_range(page_id, keys, low, high, depth)
                    yield Leaf(page_id, keys, values)
                else:
                    keys, children = self.pages.branch(page)
                    self.check_range(page_id, keys, low, high, depth)
                    limits = [*keys[1:], high]
                    stack.extend(reversed([(c, k, h, depth + 1) for c, k, h in zip(children, keys, limits, strict=True)]))
            except CorruptDatabaseError as error:
                self.problem(error)

    def check_range(self, page_id: int, keys: list[bytes], low: bytes | None, high: bytes | None, depth: int) -> None:
        """Check the keys of a page against the branch keys above it."""
        check_range(self.pages, page_id, keys, low, high, depth)

    def buckets(self, root: int) -> Iterator[Leaf]:
        """The leaf pages of the bucket at ``root`` and of all buckets below it; inline buckets are checked on the way."""
        todo = [root]
        while todo:
            root = todo.pop()
            for leaf in self._single_leaf(root) or self.leaves(root):
                nested = [(key, value) for key, value in zip(leaf.keys, leaf.values, strict=True) if type(value) is BucketValue]
                for key, value in nested:
                    if value.root:
                        todo.append(value.root)
                    else:
                        self._check_inline(leaf.page, key, value)
                yield leaf

    def _single_leaf(self, root: int) -> tuple[Leaf] | None:
        """The leaf of a bucket that is one sound page, as most are, at half the cost; ``None`` for others."""
        if not 2 <= root < len(self.seen) or self.seen[root]:
            return None
        self.checkpoint()
        try:
            single = self.pages.single_leaf(root)
        except CorruptDatabaseError:
            return None  # for leaves() to deal with
        if single is None:
            return None
        self.seen[root] = 1
        return (Leaf(root, *single),)

    def mark_buckets(self, root: int) -> None:
        """Walk the bucket at ``root`` and all buckets below it for the checks and marks alone."""
        for _ in self.buckets(root):
            pass

    def _check_inline(self, page_id: int, key: bytes, value: BucketValue) -> None:
        try:
            decode_inline(value)
        except Malformed as error:
            self.problem(self.pages.corrupt(page_id, f"inline bucket {key[:64]!r}: {error}"))


def check_range(pages: PageFile, page_id: int, keys: list[bytes], low: bytes | None, high: bytes | None, depth: int) -> None:
    """Check the keys of a tree page against the branch keys above it, and its depth."""
    if depth > MAX_TREE_DEPTH:
        raise pages.corrupt(page_id, f"the tree is more than {MAX_TREE_DEPTH} levels deep")
    if not keys:
        if depth:
            raise pages.corrupt(page_id, "an empty leaf below a branch page")
        return
    if low is not None and keys[0] < low:
        raise pages.corrupt(page_id, f"first key {keys[0][:64]!r} is below its branch key {low[:64]!r}")
    if high is not None and keys[-1] >= high:
        raise pages.corrupt(page_id, f"last key {keys[-1][:64]!r} is not below the next branch key {high[:64]!r}")


def free_pages(pages: PageFile, checkpoint: Checkpoint = no_checkpoint) -> list[int]:
    """The free pages: those on the freelist; of a file that stores none, every page that nothing refers to."""
    free = pages.freelist()
    if free is not None:
        return free
    walker = Walker(pages, checkpoint)
    walker.mark_buckets(pages.meta.root)
    return [i for i, used in enumerate(walker.seen) if not used]
