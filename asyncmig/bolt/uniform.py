"""One change to very many small, similar buckets: worked out once for each kind, then applied by copying pieces.

Decoding a bucket, changing it and encoding it again costs several times as much as copying the bytes that stay.  The entries
of a store are similar: the same keys, with values of the same sizes.  So the first bucket of each kind is changed the long way,
which shows where each value of the result comes from.  The others are changed by that recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from asyncmig.bolt.contents import Contents, read_contents, write_contents
from asyncmig.bolt.format import (
    MAX_ELEMENTS,
    PAGE_HEADER_SIZE,
    BucketValue,
    Malformed,
    decode_inline,
    encode_bucket,
    encode_small_leaf,
    inline_header,
)

if TYPE_CHECKING:
    from asyncmig.bolt.tx import Tx

Change = Callable[[Contents], None]
Signature = Callable[[Sequence[bytes], Sequence[bytes]], Hashable]
_MOST_KINDS = 1024


class UniformEdit:
    """Changes buckets within a transaction.

    ``change`` gets the contents of a bucket and changes them in place.  What it does may depend only on the keys, on the sizes
    and types of the values, and on the ``signature`` of keys and values.  It must either leave a value as it is or replace it
    with one that depends on nothing else.  A signature of ``None`` makes this bucket change the long way.  Any error ends the
    transaction.
    """

    def __init__(self, tx: Tx, change: Change, signature: Signature) -> None:
        self._tx = tx
        self._change = change
        self._signature = signature
        self._recipes: dict[Hashable, _Recipe | None] = {}

    def __call__(self, value: BucketValue) -> BucketValue:
        """Write the changed bucket; return its new value, which replaces ``value`` in its parent."""
        root = value.root
        try:
            small = self._tx.single_leaf(root) if root else decode_inline(value)
        except Malformed:
            small = None  # the long way raises the error
        signature = self._signature(*small) if small else None
        if small is None or signature is None:
            return self._long_way(value)[0]
        keys, values = small
        kind = (signature, value[8:16], tuple(keys), tuple(map(len, values)), tuple(map(type, values)))
        recipe = self._recipes.get(kind)
        if recipe is not None:
            try:
                if root:
                    self._tx.free_pages(root, 0)
                return recipe.write(self._tx, values)
            except BaseException:
                self._tx.close()  # nobody may commit half a change
                raise
        new, before, after = self._long_way(value)
        if kind not in self._recipes and len(self._recipes) < _MOST_KINDS and not _is_doubtful(before, after):
            self._recipes[kind] = _recipe(before, after, new, self._tx.page_size)
        return new

    def _long_way(self, value: BucketValue) -> tuple[BucketValue, dict[bytes, bytes], Contents]:
        """The new value, and the contents before and after."""
        contents = read_contents(self._tx, value)
        for key, item in contents.items():
            if len(item) == 1:
                contents[key] = _OneByte(item)
        before = dict(contents)
        try:
            self._change(contents)
        except BaseException:
            self._tx.close()
            raise
        return write_contents(self._tx, contents), before, contents


class _OneByte(bytes):
    """A value of one byte as an object of its own: in CPython, equal ``bytes`` of length 1 are the same object."""


def _is_doubtful(old: dict[bytes, bytes], new: Contents) -> bool:
    """Whether the change may have set a value that happens to equal the old one; another bucket of the kind must then decide.

    A value that the change has left alone is the same object.
    """
    return any((before := old.get(key)) is not value and before == value for key, value in new.items())


class _Recipe:
    """The pieces of a changed bucket: bytes that are the same for its whole kind, and values of the old bucket between them."""

    __slots__ = ("_count", "_inline", "_pieces", "_sequence", "_values")

    def __init__(self, pieces: list[bytes], sources: list[int], count: int, sequence: int, *, inline: bool) -> None:
        self._pieces = pieces
        self._values = itemgetter(*sources) if len(sources) > 1 else lambda values: [values[i] for i in sources]
        self._count = count
        self._sequence = sequence
        self._inline = inline

    def write(self, tx: Tx, values: Sequence[bytes]) -> BucketValue:
        pieces = self._pieces.copy()
        pieces[1::2] = self._values(values)
        image = b"".join(pieces)
        return (
            BucketValue(image) if self._inline else encode_bucket(tx.writer.write_leaf_body(self._count, image), self._sequence)
        )


def _recipe(old: dict[bytes, bytes], new: Contents, written: BucketValue, page_size: int) -> _Recipe | None:
    """The recipe for a change from ``old`` to ``new``.

    ``None`` if the change adds, replaces or removes a bucket that has pages, because a page belongs to one bucket only, or if
    the result does not fit on a page.
    """
    changed = [value for key, value in new.items() if old.get(key) is not value]
    replaced = [value for key, value in old.items() if new.get(key) is not value]
    if any(type(value) is BucketValue and value.root for value in (*changed, *replaced)):
        return None
    names = sorted(new)
    payload, _ = encode_small_leaf(names, [new[name] for name in names])
    size = len(payload) + PAGE_HEADER_SIZE
    if size > page_size or len(names) > MAX_ELEMENTS:
        return None
    table = payload[: len(payload) - sum(map(len, names)) - sum(map(len, new.values()))]
    pieces = [(b"" if written.root else inline_header(len(names), written.sequence)) + table]
    sources, order = [], list(old)
    for name in names:
        pieces[-1] += name
        if old.get(name) is new[name]:
            sources.append(order.index(name))
            pieces += [b"", b""]
        else:
            pieces[-1] += new[name]
    if written.root:
        pieces[-1] += bytes(page_size - size)
    return _Recipe(pieces, sources, len(names), written.sequence, inline=not written.root)
