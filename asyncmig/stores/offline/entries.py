"""Entries of containerd's metadata database and of a snapshotter's: their times and labels.

Both write them in the same form (containerd ``metadata/boltutil``): keys ``createdat`` and ``updatedat``, and a bucket
``labels``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from asyncmig.bolt import BucketValue, Contents, Tx, UniformEdit, nested_contents, read_contents, write_contents
from asyncmig.bolt.contents import Edit
from asyncmig.bolt.format import ELEMENT_SIZE, INLINE_PREFIX, Malformed, decode_inline, encode_inline
from asyncmig.errors import BucketError, printable
from asyncmig.stores.offline.codec import ZERO_TIME, to_bytes, to_text
from asyncmig.stores.ports import GC_ROOT

_MOST_PLACES = 256
"""Sets of keys to remember at most.  Real entries have about ten different sets; a hostile file may have any number."""
LABELS = b"labels"
CREATED_AT = b"createdat"
UPDATED_AT = b"updatedat"


# -- reading


class EntryReader:
    """Reads the entries of one store of the database ``path``; ``kind`` names them in messages.

    ``wanted`` are the keys to read.  Nearly all entries have the same keys, and one label or none; a short way reads them in
    half the time.
    """

    def __init__(self, tx: Tx, path: str, kind: str, *wanted: bytes) -> None:
        self._tx = tx
        self._path = path
        self._kind = kind
        self._wanted = wanted
        self._places: dict[tuple[bytes, ...], itemgetter[Any]] = {}
        self._root = _OnlyLabel(_GC_ROOT)

    def __call__(self, name: bytes, stored: BucketValue) -> tuple[Sequence[bytes], str | None, str | None]:
        """The wanted values (empty if missing), the value of the label :data:`GC_ROOT`, and what is wrong with the entry.

        An entry is wrong if :func:`set_label`, or containerd doing the same, would fail on it.  The reading stages must find
        this out: labels are removed after the leases have been made, and a failure at that point would recur in every run.
        """
        return self._short_way(stored) or self._long_way(name, stored)

    def _short_way(self, stored: BucketValue) -> tuple[Sequence[bytes], str | None, None] | None:
        root = stored.root
        try:
            small = self._tx.single_leaf(root) if root else decode_inline(stored)
        except Malformed:
            return None
        if small is None or not isinstance(small[0], tuple):
            return None
        *found, labels = self._place(small[0])((*small[1], b"", _NO_LABELS))
        if BucketValue in map(type, found):
            return None
        del found[-2:]  # the times
        if labels is _NO_LABELS:
            return found, None, None
        value = self._root.value(labels)
        return None if value is None else (found, to_text(value), None)

    def _place(self, keys: tuple[bytes, ...]) -> itemgetter[Any]:
        """A getter for the wanted values, both times and the labels.

        It takes the entry's values, followed by two substitutes for what is missing: an empty value and no labels.
        """
        place = self._places.get(keys)
        if place is None:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            at = {key: i for i, key in enumerate(keys)}
            indices = [at.get(key, len(keys)) for key in (*self._wanted, CREATED_AT, UPDATED_AT)]
            place = self._places[keys] = itemgetter(*indices, at.get(LABELS, len(keys) + 1))
        return place

    def _long_way(self, name: bytes, stored: BucketValue) -> tuple[list[bytes], str | None, str | None]:
        entry = read_contents(self._tx, stored)
        labels = nested_contents(self._tx, entry, LABELS)
        fault = _misshapen(entry, labels)
        if fault is not None:
            place = f"{printable(self._path)}: {self._kind} {printable(to_text(name))}"
            fault = f"{place}: {fault}; containerd never writes that; restore the file from a backup"
        found = [entry.get(key, b"") for key in self._wanted]
        return [b"" if type(value) is BucketValue else value for value in found], _root_label(labels), fault


def _root_label(labels: Contents | None) -> str | None:
    """The value of the label that makes an entry a root, as containerd sees it: an empty value counts, a bucket does not."""
    value = labels.get(_GC_ROOT) if labels else None
    return None if value is None or type(value) is BucketValue else to_text(value)


class _OnlyLabel:
    """Finds the value of a label in an inline bucket that holds nothing else, without decoding the bucket."""

    def __init__(self, label: bytes) -> None:
        self._label = label
        self._start = encode_inline([label], [b""], 0)[: INLINE_PREFIX + ELEMENT_SIZE - 4]  # ends before the value's size
        self._value_at = INLINE_PREFIX + ELEMENT_SIZE + len(label)

    def value(self, labels: bytes) -> bytes | None:
        """The label's value; ``None`` if ``labels`` is not a bucket or holds anything else."""
        at = self._value_at
        if not labels.startswith(self._start) or not labels.startswith(self._label, at - len(self._label)):
            return None
        size = int.from_bytes(labels[len(self._start) : len(self._start) + 4], "little")
        return labels[at:] if type(labels) is BucketValue and len(labels) == at + size else None


# -- changing labels


def _misshapen(entry: Contents, labels: Contents | None) -> str | None:
    for name in (CREATED_AT, UPDATED_AT):
        if type(entry.get(name)) is BucketValue:
            return f"{name.decode()} is a bucket where a time should be"
    if labels is None:
        return "labels is a value where a bucket should be" if LABELS in entry else None
    if BucketValue not in map(type, labels.values()):
        return None
    nested = next(key for key, value in labels.items() if type(value) is BucketValue)
    return f"label {printable(to_text(nested))} is a bucket where a value should be"


def set_label(tx: Tx, entry: Contents, label: bytes, value: bytes, now: bytes, *, tidy: bool = False) -> None:
    """Do to a metadata entry what containerd's Update with the field path ``labels.<label>`` does; empty ``value``: remove.

    Update rewrites both times and all labels, and drops labels with an empty value.  Afterwards there is a bucket for the
    labels, even if it is empty and did not exist before: to remove a label, containerd writes a map in which the label has an
    empty value (containerd ``metadata/boltutil``).  With ``tidy`` no empty bucket stays.

    Raises :class:`BucketError` if the entry has a wrong form.
    """
    labels = nested_contents(tx, entry, LABELS)
    cause = _misshapen(entry, labels)
    if cause is not None:
        raise BucketError(cause)
    entry.setdefault(CREATED_AT, ZERO_TIME)
    entry[UPDATED_AT] = now
    if labels is None:
        labels = Contents()
    labels[label] = value
    if not all(labels.values()):
        for key in [key for key, value in labels.items() if not value]:
            del labels[key]
    if labels or not tidy:
        entry[LABELS] = write_contents(tx, labels)
    else:
        entry.pop(LABELS, None)


class LabelRemoval:
    """:func:`set_label` without a value, for very many entries."""

    def __init__(self, tx: Tx, label: bytes, now: bytes, *, tidy: bool) -> None:
        self._only_label = _OnlyLabel(label)
        self._edit = UniformEdit(tx, lambda entry: set_label(tx, entry, label, b"", now, tidy=tidy), self._signature)

    def __call__(self, value: BucketValue) -> BucketValue:
        """Remove the label from the entry with this value; return the entry's new value."""
        return self._edit(value)

    def _signature(self, keys: Sequence[bytes], values: Sequence[bytes]) -> bool | None:
        """``True`` for an entry with only this label and a value, ``False`` without labels, ``None`` for the few others."""
        if LABELS not in keys:
            return False
        return True if self._only_label.value(values[keys.index(LABELS)]) else None


def by_key(value_of: Callable[[str], str]) -> Callable[[bytes], bytes]:
    """Adapt a function that gives an object's label value by name to names and values as they are stored."""
    return lambda key: to_bytes(value_of(to_text(key)))


def label_edit(tx: Tx, label: bytes, now: bytes, value_of: Callable[[bytes], bytes] | None, *, tidy: bool = False) -> Edit:
    """An edit that sets the label of each entry, or removes it if ``value_of`` is ``None``; ``tidy`` as :func:`set_label`."""
    removal = LabelRemoval(tx, label, now, tidy=tidy)

    def edit(key: bytes, stored: BucketValue | None) -> BucketValue | None:
        if stored is None or value_of is None:
            return removal(stored) if stored else None
        entry = read_contents(tx, stored)
        set_label(tx, entry, label, value_of(key), now)
        return write_contents(tx, entry)

    return edit


_GC_ROOT = to_bytes(GC_ROOT)
_NO_LABELS = BucketValue()
"""Stands for the labels of an entry without labels.  Compared by identity, so it must not be plain bytes: CPython may use one
object for equal ones."""
