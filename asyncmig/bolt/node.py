"""Pages decoded into memory, as a transaction changes them."""

from __future__ import annotations

from asyncmig.bolt.format import ELEMENT_SIZE, PAGE_HEADER_SIZE


class Node:
    """One branch or leaf.

    ``values`` of a leaf are bytes; ``values`` of a branch are its children: page ids of those not read yet, nodes of others.
    ``pages`` are the page id that the node was read from and the number of overflow pages, ``None`` for a new node.  These
    pages become free when the node is written again.
    """

    __slots__ = ("dirty", "keys", "leaf", "pages", "shrunk", "values")

    def __init__(
        self,
        leaf: bool,
        keys: list[bytes],
        values: list[bytes] | list[Child],
        pages: tuple[int, int] | None = None,
        *,
        dirty: bool = True,
    ) -> None:
        self.leaf = leaf
        self.keys = keys
        # One list with two meanings, depending on ``leaf``; ``data`` and ``children`` name them for the type checker.
        self.values = values
        self.pages = pages
        self.dirty = dirty
        self.shrunk = False

    @property
    def data(self) -> list[bytes]:
        """``values`` of a leaf."""
        return self.values  # type: ignore[return-value]

    @property
    def children(self) -> list[Child]:
        """``values`` of a branch."""
        return self.values  # type: ignore[return-value]

    def size(self) -> int:
        """Bytes that this node takes as a page."""
        fixed = PAGE_HEADER_SIZE + ELEMENT_SIZE * len(self.keys) + sum(map(len, self.keys))
        return fixed + sum(map(len, self.data)) if self.leaf else fixed


Child = int | Node
