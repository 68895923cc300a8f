"""Pages decoded into memory, as a transaction changes them."""

from __future__ import annotations

from asyncmig.bolt.format import ELEMENT_SIZE, PAGE_HEADER_SIZE


class Node:
    """One branch or leaf.

    ``values`` of a leaf are bytes; ``values`` of a branch are page ids of children not read yet, or their nodes.
    ``pages`` are the page id and the number of overflow pages the node was read from (``None``: it is new), which become
    free when the node is written again.
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
        # One list with two meanings, told apart by ``leaf``; ``data`` and ``children`` name them for the type checker.
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
        """Bytes of the page that this node would make."""
        fixed = PAGE_HEADER_SIZE + ELEMENT_SIZE * len(self.keys) + sum(map(len, self.keys))
        return fixed + sum(map(len, self.data)) if self.leaf else fixed


Child = int | Node
