"""Nested buckets as dictionaries: the fast way to read and rewrite very many small buckets.

A :class:`Bucket` handle looks up each key and collects changes until the end of the transaction.  An entry of a store has only
a handful of keys, and all are needed; reading and writing it as a whole costs a fifth of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from asyncmig.bolt.build import write_small_bucket
from asyncmig.bolt.format import BucketValue, Malformed, decode_inline
from asyncmig.errors import BucketError

if TYPE_CHECKING:
    from asyncmig.bolt.bucket import Bucket
    from asyncmig.bolt.node import Node
    from asyncmig.bolt.tx import Tx


class Contents(dict[bytes, bytes]):
    """All keys and values of one bucket; the value of a nested bucket is its :class:`BucketValue`.

    Changes here reach the file only through :func:`write_contents`.
    """

    stored: BucketValue | None = None
    """The value that the contents were read from; ``None`` for a new bucket."""
    pages: Iterable[tuple[int, int]] = ()
    """The pages that the contents were read from, each with its number of overflow pages."""


def read_contents(tx: Tx, value: BucketValue) -> Contents:
    """The contents of the bucket with this value.  Raises :class:`CorruptDatabaseError`."""
    root = value.root
    try:
        single = tx.single_leaf(root) if root else decode_inline(value)
    except Malformed as error:
        raise tx.file.corrupt(None, f"inline bucket: {error}") from None
    if single is None:
        nodes = list(tx.nodes(root))
        contents = Contents(entry for node in nodes if node.leaf for entry in zip(node.keys, node.data, strict=True))
        contents.pages = [node.pages for node in nodes if node.pages]
    else:
        contents = Contents(zip(*single, strict=True))
        if root:
            contents.pages = ((root, 0),)
    contents.stored = value
    return contents


def nested_contents(tx: Tx, contents: Contents, name: bytes) -> Contents | None:
    """The contents of the nested bucket ``name``; ``None`` if ``contents`` has no such bucket."""
    value = contents.get(name)
    return read_contents(tx, value) if type(value) is BucketValue else None


def write_contents(tx: Tx, contents: Contents) -> BucketValue:
    """Write a bucket; return its new value, which replaces the old one in its parent.

    The pages that the bucket was read from become free.  The pages of buckets within it don't, so ``contents`` must still
    hold every one of these buckets.  Raises :class:`BucketError` for a key that is too long or empty.  Any error ends the
    transaction.
    """
    tx.check_writable()
    stored = contents.stored
    try:
        for page, overflow in contents.pages:
            tx.free_pages(page, overflow)
        contents.pages = ()
        names = sorted(contents)
        values = list(map(contents.__getitem__, names))
        return write_small_bucket(tx.writer, names, values, stored.sequence if stored else 0)
    except BaseException:
        tx.close()  # nobody may commit half a change
        raise


Edit = Callable[[bytes, "BucketValue | None"], "BucketValue | None"]
"""Called with name and value of a nested bucket (``None``: it does not exist); returns the new value (``None``: no change)."""


def edit_buckets(bucket: Bucket, names: Iterable[bytes], edit: Edit) -> None:
    """Let ``edit`` replace the values of nested buckets (see :func:`write_contents`).

    Names in order are quickest and need memory for one leaf page only: each leaf is written when the next one is reached.

    Raises :class:`BucketError` if a name is a plain key.  Any error ends the transaction, also an error of ``edit``: pages may
    have been written or freed for a value that was not stored.
    """
    with bucket.tx.indivisible():
        _edit_buckets(bucket, names, edit)


def _edit_buckets(bucket: Bucket, names: Iterable[bytes], edit: Edit) -> None:
    before: Node | None = None
    for name in names:
        leaf, i = bucket.find(name)
        if leaf is not before:
            if before is not None and before.dirty and before.keys:
                bucket.settle(before.keys[0])
            before = leaf
        old = None if i is None else leaf.values[i]
        if old is not None and type(old) is not BucketValue:
            raise BucketError(f"key {name[:64]!r} already exists")
        new = edit(name, old)
        if new is None:
            continue
        if i is not None and leaf.dirty:
            leaf.data[i] = new
            bucket.version += 1
        else:
            before = bucket.replace(name, new)
