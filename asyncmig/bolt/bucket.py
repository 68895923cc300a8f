"""Buckets: sorted maps from keys to values or further buckets, changed copy-on-write.

A write transaction never writes to a page in use.  It decodes the pages that it touches into nodes, changes the nodes, and at
the end writes them to other pages.  The old pages become free for the next transaction.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from asyncmig.bolt.cursor import Cursor
from asyncmig.bolt.format import (
    ELEMENT_SIZE,
    MAX_ELEMENTS,
    MAX_KEY_SIZE,
    MAX_UINT64,
    MAX_VALUE_SIZE,
    PAGE_HEADER_SIZE,
    BucketValue,
    Malformed,
    decode_inline,
    encode_bucket,
    encode_inline,
)
from asyncmig.bolt.node import Child, Node
from asyncmig.errors import BucketError

if TYPE_CHECKING:
    from asyncmig.bolt.tx import Tx

_SPLIT_AT = 512
"""A node with more elements than this is split while it is still in memory.

bbolt splits at commit only.  There, a bucket that receives many keys in random order becomes one huge array, and inserting is
quadratic.
"""
_EMPTY_BUCKET = BucketValue(bytes(32))


class Bucket:
    """A bucket within a transaction.

    Keys and values are bytes; a key has 1 to 32768 of them.  A handle is valid until its transaction ends or its bucket is
    deleted or spilled; later calls raise :class:`BucketError`.  Damage in the file raises :class:`CorruptDatabaseError`.
    """

    __slots__ = ("_children", "_hot", "_open", "_root", "_root_page", "_sequence", "_stored", "tx", "version")

    def __init__(self, tx: Tx, root_page: int, sequence: int, stored: BucketValue | None = None) -> None:
        self.tx = tx
        self.version = 0
        """Changes whenever the bucket changes, so that cursors notice."""
        self._root_page = root_page
        self._sequence = sequence
        self._stored = stored  # the value in the parent, None for a new bucket
        self._root: Node | None = None
        self._children: dict[bytes, Bucket] = {}
        # The leaf found last, with the range of keys it covers: sorted access need not descend from the root each time.
        self._hot: tuple[Node, bytes | None, bytes | None] | None = None
        self._open = True
        if not root_page:
            self._root = self._inline_root(stored)

    def _inline_root(self, stored: BucketValue | None) -> Node:
        if stored is None:
            return Node(True, [], [])
        try:
            keys, values = map(list, decode_inline(stored))
        except Malformed as error:
            pages = self.tx.pages
            assert pages is not None
            raise pages.corrupt(None, f"inline bucket: {error}") from None
        return Node(True, keys, values, dirty=False)

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``; ``None`` if the key does not exist or is a bucket."""
        value = self._lookup(key)
        return None if type(value) is BucketValue else value

    def __contains__(self, key: bytes) -> bool:
        return self._lookup(key) is not None

    def bucket(self, name: bytes) -> Bucket | None:
        """The nested bucket ``name``, or ``None``."""
        self.check_open()
        child = self._children.get(name)
        if child is not None:
            return child
        value = self._lookup(name)
        if type(value) is not BucketValue:
            return None
        child = Bucket(self.tx, value.root, value.sequence, value)
        if self.tx.writable:
            # Only a write transaction has changes to collect.  A reader must not keep every bucket that it has opened.
            self._children[name] = child
        return child

    def cursor(self) -> Cursor:
        """A cursor over this bucket, before its first key."""
        self.check_open()
        return Cursor(self)

    def items(self) -> Iterator[tuple[bytes, bytes | None]]:
        """All keys in order with their values (``None`` for a nested bucket).  The bucket may change during the iteration."""
        cursor = self.cursor()
        item = cursor.first()
        while item is not None:
            yield item
            item = cursor.next()

    def value(self, key: bytes) -> bytes | None:
        """The value of ``key`` as stored; for a nested bucket it is a :class:`BucketValue`."""
        leaf, i = self.find(key)
        return None if i is None else leaf.data[i]

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys in order with their values as stored.  For read transactions only; faster than :meth:`items`."""
        self.check_open()
        if self.tx.writable:
            raise BucketError("entries() is for read transactions")
        for node in self.tx.nodes(self.root_node()):
            if node.leaf:
                yield from zip(node.keys, node.data, strict=True)
            self.check_open()

    @property
    def sequence(self) -> int:
        """The bucket's sequence number."""
        self.check_open()
        return self._sequence

    def check_open(self) -> None:
        """Raise :class:`BucketError` unless the handle is valid."""
        if not self._open or not self.tx.open:
            self.tx.check_open()
            raise BucketError("the bucket was deleted or spilled")

    def find(self, key: bytes) -> tuple[Node, int | None]:
        """The leaf for ``key``, and the key's index in it, ``None`` if the key is missing.

        If ``key`` is an open nested bucket, its changes are written first.
        """
        if key in self._children:
            self.spill_child(key)
        self.check_open()
        leaf = self._leaf(key)
        keys = leaf.keys
        i = bisect_left(keys, key)
        return leaf, i if i < len(keys) and keys[i] == key else None

    def _lookup(self, key: bytes) -> bytes | None:
        self.check_open()
        leaf = self._leaf(key)
        keys = leaf.keys
        i = bisect_left(keys, key)
        return leaf.values[i] if i < len(keys) and keys[i] == key else None  # type: ignore[return-value]

    def root_node(self) -> Node:
        """The node at the top."""
        if self._root is None:
            self._root = self.tx.load(self._root_page, None, None, 0)
        return self._root

    def child_node(self, branch: Node, i: int, low: bytes | None, high: bytes | None, depth: int) -> Node:
        """Child ``i`` of ``branch``.  Branches stay in memory once they are read, leaves only if they are changed."""
        child = branch.children[i]
        if isinstance(child, int):
            child = self.tx.load(child, low, high, depth)
            if not child.leaf:
                branch.children[i] = child
        return child

    def _leaf(self, key: bytes) -> Node:
        hot = self._hot_leaf(key)
        if hot is not None:
            return hot
        node, low, high, depth = self.root_node(), None, None, 0
        while not node.leaf:
            i, low, high = _step(node, key, low, high)
            depth += 1
            node = self.child_node(node, i, low, high, depth)
        self._hot = (node, low, high)
        return node

    # -- writing

    def put(self, key: bytes, value: bytes) -> None:
        """Set ``key`` to ``value``.  Raises :class:`BucketError` if the key is a bucket, too long or empty."""
        self._check_write(key)
        if len(value) > MAX_VALUE_SIZE:
            raise BucketError(f"a value of {len(value)} bytes is too large")
        if not self._store(key, bytes(value)):
            raise BucketError(f"key {key[:64]!r} is a bucket")

    def delete(self, key: bytes) -> None:
        """Remove ``key`` if it is there.  Raises :class:`BucketError` if it is a bucket."""
        self._check_write(key)
        value = self._lookup(key)
        if type(value) is BucketValue:
            raise BucketError(f"key {key[:64]!r} is a bucket")
        if value is not None:
            self._remove(key)

    def set_sequence(self, value: int) -> None:
        """Set the bucket's sequence number, an unsigned number of 64 bits."""
        self.tx.check_writable()
        self.check_open()
        if not 0 <= value <= MAX_UINT64:
            raise BucketError(f"sequence {value} does not fit into 64 bits")
        self._sequence = value

    def next_sequence(self) -> int:
        """Raise the bucket's sequence number by one and return it."""
        self.set_sequence(self._sequence + 1)
        return self._sequence

    def create_bucket(self, name: bytes) -> Bucket:
        """Create the nested bucket ``name``.  Raises :class:`BucketError` if the key exists."""
        self.put_new_bucket(name, _EMPTY_BUCKET)
        child = self._children[name] = Bucket(self.tx, 0, 0)
        return child

    def put_new_bucket(self, name: bytes, value: BucketValue) -> None:
        """Create the nested bucket ``name`` from its value; this transaction must have written the bucket's pages already."""
        self._check_write(name)
        existing = self._lookup(name)
        if existing is not None:
            kind = "bucket" if type(existing) is BucketValue else "key"
            raise BucketError(f"{kind} {name[:64]!r} already exists")
        self._store(name, value)

    def replace(self, name: bytes, value: BucketValue) -> Node:
        """Set the value of the nested bucket ``name``, new or not; return the leaf that holds it.

        This transaction must have written the bucket's pages already.
        """
        self._check_write(name)
        self._store(name, value)
        return self._leaf(name)

    def create_bucket_if_not_exists(self, name: bytes) -> Bucket:
        """The nested bucket ``name``, created if it is missing."""
        return self.bucket(name) or self.create_bucket(name)

    def delete_bucket(self, name: bytes) -> None:
        """Delete the nested bucket ``name`` with everything in it.  Raises :class:`BucketError` if there is none."""
        self._check_write(name)
        child = self.bucket(name)
        if child is None:
            raise BucketError(f"no bucket {name[:64]!r}")
        with self.tx.indivisible():
            child._free_everything()
            del self._children[name]
            self._remove(name)

    def spill_child(self, name: bytes, fill_percent: float = 0.5) -> None:
        """Write the nested bucket ``name`` now and drop it from memory.  Handles to it and into it become invalid.

        This bounds the memory of a transaction that touches very many nested buckets.  The bucket can be opened again.
        """
        self.tx.check_writable()
        self.check_open()
        child = self._children.pop(name, None)
        if child is not None:
            with self.tx.indivisible():
                child._store_children(fill_percent)
                self._store_child(name, child, fill_percent)
            for _, _, bucket in child._opened_below():
                bucket._open = False
            child._open = False

    def settle(self, key: bytes) -> None:
        """Write the leaf for ``key`` now if it has changed, and drop it from memory."""
        self.tx.check_writable()
        self.check_open()
        way: list[tuple[Node, int]] = []
        node = self.root_node()
        while not node.leaf:
            i, _, _ = _step(node, key, None, None)
            child = node.children[i]
            if isinstance(child, int):
                return
            way.append((node, i))
            node = child
        if way and node.dirty and not node.shrunk:
            parent, i = way[-1]
            with self.tx.indivisible():
                written = self._write_node(node, 0.5)
            parent.keys[i : i + 1] = [first for first, _ in written]
            parent.children[i : i + 1] = [page for _, page in written]
            self._hot = None
            self.version += 1

    def _check_write(self, key: bytes) -> None:
        self.tx.check_writable()
        self.check_open()
        if not 0 < len(key) <= MAX_KEY_SIZE:
            raise BucketError(f"a key of {len(key)} bytes; 1 to {MAX_KEY_SIZE} are allowed")

    def _writable_leaf(self, key: bytes) -> tuple[Node, list[tuple[Node, int]]]:
        """The leaf for ``key`` and the path to it; marks all these nodes as changed."""
        node, low, high, depth = self.root_node(), None, None, 0
        node.dirty = True
        way: list[tuple[Node, int]] = []
        while not node.leaf:
            i, low, high = _step(node, key, low, high)
            depth += 1
            child = self.child_node(node, i, low, high, depth)
            child.dirty = True
            node.children[i] = child
            way.append((node, i))
            node = child
        self._hot = (node, low, high)
        return node, way

    def _hot_leaf(self, key: bytes) -> Node | None:
        """The leaf found last, if ``key`` belongs into it, too."""
        if self._hot is None:
            return None
        node, low, high = self._hot
        return node if (low is None or low <= key) and (high is None or key < high) else None

    def _store(self, key: bytes, value: bytes) -> bool:
        """Set ``key``; ``False`` if a plain value would replace a bucket."""
        leaf = self._hot_leaf(key)
        if leaf is None or not leaf.dirty:
            leaf, _ = self._writable_leaf(key)
        keys, data = leaf.keys, leaf.data
        i = bisect_left(keys, key)
        if i < len(keys) and keys[i] == key:
            if type(data[i]) is BucketValue and type(value) is not BucketValue:
                return False
            data[i] = value
        else:
            keys.insert(i, key)
            data.insert(i, value)
            if len(keys) > _SPLIT_AT:
                self._split(key)
        self.version += 1
        return True

    def _split(self, key: bytes) -> None:
        node, way = self._writable_leaf(key)
        self._hot = None
        while len(node.keys) > _SPLIT_AT:
            # If keys arrive in order, split near the end, so that the left node stays full.
            at = len(node.keys) - 16 if node.keys[-1] <= key else len(node.keys) // 2
            right = Node(node.leaf, node.keys[at:], node.values[at:])
            del node.keys[at:], node.values[at:]
            if not way:
                children: list[Child] = [node, right]
                self._root = Node(False, [node.keys[0], right.keys[0]], children)
                return
            parent, i = way.pop()
            parent.keys.insert(i + 1, right.keys[0])
            parent.children.insert(i + 1, right)
            node = parent

    def _remove(self, key: bytes) -> None:
        leaf, _ = self._writable_leaf(key)
        i = bisect_left(leaf.keys, key)
        if i < len(leaf.keys) and leaf.keys[i] == key:
            del leaf.keys[i], leaf.data[i]
            leaf.shrunk = True
            self.version += 1

    def _free_everything(self) -> None:
        """Free all pages of this bucket and of the buckets in it."""
        todo, freed = [self], set[int]()
        while todo:
            bucket = todo.pop()
            # Reading all keys first checks the tree, so that _free_pages can't run into a cycle.
            for name in [key for key, value in bucket.items() if value is None]:
                child = bucket.bucket(name)
                assert child is not None
                todo.append(child)
            bucket._free_pages(freed)
            bucket._open = False

    def _free_pages(self, freed: set[int]) -> None:
        """Free the pages of this tree.

        ``freed`` has the pages that this deletion has freed so far.  It keeps a damaged file, in which buckets share pages,
        from making the deletion endless.
        """
        todo: list[Child] = [self.root_node()]
        while todo:
            node = todo.pop()
            if isinstance(node, int):
                node = self.tx.load(node, None, None, 0 if node == self._root_page else 1)
            if node.pages:
                first, overflow = node.pages
                if not freed.isdisjoint(span := range(first, first + overflow + 1)):
                    assert self.tx.pages is not None
                    raise self.tx.pages.corrupt(first, "referenced twice")
                freed.update(span)
            self.tx.free(node)
            if not node.leaf:
                todo.extend(node.children)

    # -- the end of a transaction

    def spill_root(self, fill_percent: float) -> tuple[int, int]:
        """Write everything below the root bucket; return its root page and sequence."""
        self._store_children(fill_percent)
        root = self.root_node() if self._root else None
        if root is not None and root.dirty:
            self._root_page = self._write_tree(root, fill_percent)
        return self._root_page, self._sequence

    def _opened_below(self) -> list[tuple[Bucket, bytes, Bucket]]:
        """The open buckets below this one, as parent, name and bucket; each bucket comes before the buckets inside it."""
        found: list[tuple[Bucket, bytes, Bucket]] = []
        todo = [self]
        while todo:
            parent = todo.pop()
            for name, child in reversed(parent._children.items()):
                found.append((parent, name, child))
                todo.append(child)
        return found

    def _store_children(self, fill_percent: float) -> None:
        # Innermost first.  Not recursive: buckets may be nested deeper than Python's stack.
        for parent, name, child in reversed(self._opened_below()):
            parent._store_child(name, child, fill_percent)

    def _store_child(self, name: bytes, child: Bucket, fill_percent: float) -> None:
        value = child._spill(fill_percent)
        if value != child._stored:
            self._store(name, value)

    def _spill(self, fill_percent: float) -> BucketValue:
        """Write the changes in this bucket; return the value for its parent.  The buckets below must be stored already."""
        root = self._root
        if root is None or (not root.dirty and self._stored is not None):
            if self._stored is not None and self._stored.sequence == self._sequence:
                return self._stored
            if self._root_page:
                return encode_bucket(self._root_page, self._sequence)
        assert root is not None
        if self._fits_inline(root):
            self.tx.free(root)
            return encode_inline(root.keys, root.data, self._sequence)
        if root.dirty or not self._root_page:
            # Without a root page it is an inline bucket that is larger than bbolt makes them and has only a new sequence.
            self._root_page = self._write_tree(root, fill_percent)
        return encode_bucket(self._root_page, self._sequence)

    def _fits_inline(self, root: Node) -> bool:
        """bbolt's rule: one leaf without nested buckets, at most a quarter of a page."""
        return (
            root.leaf
            and len(root.keys) <= min(self.tx.page_size // ELEMENT_SIZE, MAX_ELEMENTS)
            and root.size() <= self.tx.page_size // 4
            and BucketValue not in set(map(type, root.data))
        )

    def _write_tree(self, root: Node, fill_percent: float) -> int:
        """Write a changed tree; return its new root page."""
        self._merge_small_children(root)
        while not root.leaf and len(root.children) == 1:
            # Remove a level only at the top: bbolt relies on all leaves of a tree being equally deep.
            child = root.children[0]
            self.tx.free(root)
            if isinstance(child, int):
                return child
            if not child.dirty:
                assert child.pages is not None
                return child.pages[0]
            root = child
        level = self._write_node(root, fill_percent)
        while len(level) > 1:
            level = self._write_branches([k for k, _ in level], [p for _, p in level], fill_percent)
        return level[0][1]

    def _write_node(self, node: Node, fill_percent: float) -> list[tuple[bytes, int]]:
        """Write a changed node and every change below it; return the first keys and page ids of the pages that replace it."""
        self.tx.free(node)
        if node.leaf:
            return self._write_leaves(node.keys, node.data, fill_percent)
        level: list[tuple[bytes, int]] = []
        for key, child in zip(node.keys, node.children, strict=True):
            if isinstance(child, int):
                level.append((key, child))
            elif child.dirty:
                level.extend(self._write_node(child, fill_percent))
            else:
                assert child.pages is not None
                level.append((key, child.pages[0]))
        return self._write_branches([k for k, _ in level], [p for _, p in level], fill_percent)

    def _merge_small_children(self, branch: Node) -> None:
        """Join children that deletions have made small with a neighbour, at all levels below ``branch``."""
        if branch.leaf:
            return
        i = 0
        while i < len(branch.children):
            child = branch.children[i]
            if isinstance(child, Node) and child.dirty:
                self._merge_small_children(child)
                if self._is_small(child):
                    if len(branch.children) > 1:
                        i = self._join_with_neighbour(branch, i)
                        continue
                    branch.shrunk = True  # an only child gets a neighbour when its branch is joined with another one
            i += 1

    def _is_small(self, node: Node) -> bool:
        return node.shrunk and (len(node.keys) < (1 if node.leaf else 2) or node.size() < self.tx.page_size // 4)

    def _join_with_neighbour(self, branch: Node, i: int) -> int:
        """Join child ``i`` with the child before it, or the first child with the second; return the index of the result."""
        left = i - 1 if i else 0
        low, high = self._loaded(branch.children[left]), self._loaded(branch.children[left + 1])
        if low.leaf != high.leaf:
            assert self.tx.pages is not None
            raise self.tx.pages.corrupt(None, "the leaves of a tree are not equally deep")
        self.tx.free(high)
        low.keys += high.keys
        low.values += high.values  # type: ignore[operator]
        low.dirty = low.shrunk = branch.shrunk = True
        branch.children[left] = low
        del branch.keys[left + 1], branch.children[left + 1]
        return left

    def _loaded(self, child: Child) -> Node:
        return self.tx.load(child, None, None, 1) if isinstance(child, int) else child

    def _write_leaves(self, keys: list[bytes], data: list[bytes], fill_percent: float) -> list[tuple[bytes, int]]:
        sizes = [ELEMENT_SIZE + len(k) + len(v) for k, v in zip(keys, data, strict=True)]
        return [
            (keys[a] if keys else b"", self.tx.writer.write_leaf(keys[a:b], data[a:b]))
            for a, b in split(sizes, self.tx.page_size, fill_percent)
        ]

    def _write_branches(self, keys: list[bytes], pages: list[int], fill_percent: float) -> list[tuple[bytes, int]]:
        sizes = [ELEMENT_SIZE + len(k) for k in keys]
        return [
            (keys[a], self.tx.writer.write_branch(keys[a:b], pages[a:b]))
            for a, b in split(sizes, self.tx.page_size, fill_percent)
        ]


def _step(branch: Node, key: bytes, low: bytes | None, high: bytes | None) -> tuple[int, bytes | None, bytes | None]:
    """The index of the child of ``branch`` for ``key``, and the range of keys that this child may hold."""
    keys = branch.keys
    i = bisect_right(keys, key) - 1
    if i < 0:
        i = 0  # a key below all others belongs into the first child; writing the child updates its key in the branch
    else:
        low = keys[i]
    return i, low, keys[i + 1] if i + 1 < len(keys) else high


def split(sizes: list[int], page_size: int, fill_percent: float) -> Iterator[tuple[int, int]]:
    """Cut a node into pages as bbolt does; yield the start and end index of the elements of each page.

    Cuts only if the node is larger than a page; then fills pages to ``fill_percent``, with two keys or more on each.
    """
    total = PAGE_HEADER_SIZE + sum(sizes)
    threshold = int(page_size * min(max(fill_percent, 0.1), 1.0))
    start, count = 0, len(sizes)
    while count - start > 4 and (total > page_size or count - start > MAX_ELEMENTS):
        used, end = PAGE_HEADER_SIZE, start
        while end < count - 2 and end - start < MAX_ELEMENTS and (end - start < 2 or used + sizes[end] <= threshold):
            used += sizes[end]
            end += 1
        yield start, end
        total -= used - PAGE_HEADER_SIZE
        start = end
    yield start, count
