"""Entries of containerd's metadata database and of a snapshotter's: their times and labels.

Both write them alike (containerd ``metadata/boltutil``): keys ``createdat`` and ``updatedat``, and a bucket ``labels``.
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
"""Sets of keys that are remembered: real entries have about ten, a hostile file has what it likes."""
LABELS = b"labels"
CREATED_AT = b"createdat"
UPDATED_AT = b"updatedat"


# -- reading


class EntryReader:
    """Reads the entries of one store of the database ``path``; ``kind`` names them in messages.

    ``wanted`` are the keys that are looked at.  Nearly all entries have the same keys, and one label or none: those are read
    the short way, which takes half the time.
    """

    def __init__(self, tx: Tx, path: str, kind: str, *wanted: bytes) -> None:
        self._tx = tx
        self._path = path
        self._kind = kind
        self._wanted = wanted
        self._places: dict[tuple[bytes, ...], itemgetter[Any]] = {}
        self._root = _OnlyLabel(_GC_ROOT)

    def __call__(self, name: bytes, stored: BucketValue) -> tuple[Sequence[bytes], str | None, str | None]:
        """The wanted values, empty ones for those that are missing; the label that makes it a root; and what is wrong.

        Wrong is what :func:`set_label` would fail on, or containerd when it does the same.  Meant for the reading stages: the
        labels go when leases have been made already, and a failure then would come again and again.
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
        """What gets the wanted values, both times and the labels out of the values and, behind them, those of missing keys."""
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
            fault = f"{place}: {fault}; containerd never writes that, restore the file from a copy"
        found = [entry.get(key, b"") for key in self._wanted]
        return [b"" if type(value) is BucketValue else value for value in found], _root_label(labels), fault


def _root_label(labels: Contents | None) -> str | None:
    """The label that makes an entry a root; as for containerd, an empty value is one, and what is a bucket is none."""
    value = labels.get(_GC_ROOT) if labels else None
    return None if value is None or type(value) is BucketValue else to_text(value)


class _OnlyLabel:
    """Finds the value of a label in an inline bucket that holds nothing else, without taking it apart."""

    def __init__(self, label: bytes) -> None:
        self._label = label
        self._start = encode_inline([label], [b""], 0)[: INLINE_PREFIX + ELEMENT_SIZE - 4]  # to where the value's size stands
        self._value_at = INLINE_PREFIX + ELEMENT_SIZE + len(label)

    def value(self, labels: bytes) -> bytes | None:
        """The label's value; ``None`` if this is another bucket, or none."""
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


def set_label(tx: Tx, entry: Contents, label: bytes, value: bytes, now: bytes) -> None:
    """What containerd's Update with the field path ``labels.<label>`` does to a metadata entry; no ``value`` removes the label.

    It rewrites both times and all labels, of which those with an empty value go, too.  The bucket of the labels is there
    afterwards even if it is empty, and even if there was none before: a label to be removed is an entry without value in
    the map that is written (containerd ``metadata/boltutil``).  Raises :class:`BucketError` for an entry that is misshapen.
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
    entry[LABELS] = write_contents(tx, labels)


class LabelRemoval:
    """:func:`set_label` without a value, for very many entries."""

    def __init__(self, tx: Tx, label: bytes, now: bytes) -> None:
        self._only_label = _OnlyLabel(label)
        self._edit = UniformEdit(tx, lambda entry: set_label(tx, entry, label, b"", now), self._signature)

    def __call__(self, value: BucketValue) -> BucketValue:
        """Remove the label of the entry with this value; returns its new one."""
        return self._edit(value)

    def _signature(self, keys: Sequence[bytes], values: Sequence[bytes]) -> bool | None:
        """Whether the entry has just this one label, with a value, or else none: one or the other is true of nearly all."""
        if LABELS not in keys:
            return False
        return True if self._only_label.value(values[keys.index(LABELS)]) else None


def by_key(value_of: Callable[[str], str]) -> Callable[[bytes], bytes]:
    """The values of a label by the names of its objects as they are stored."""
    return lambda key: to_bytes(value_of(to_text(key)))


def label_edit(tx: Tx, label: bytes, now: bytes, value_of: Callable[[bytes], bytes] | None) -> Edit:
    """What sets the label of an entry, or without values removes it."""
    removal = LabelRemoval(tx, label, now)

    def edit(key: bytes, stored: BucketValue | None) -> BucketValue | None:
        if stored is None or value_of is None:
            return removal(stored) if stored else None
        entry = read_contents(tx, stored)
        set_label(tx, entry, label, value_of(key), now)
        return write_contents(tx, entry)

    return edit


_GC_ROOT = to_bytes(GC_ROOT)
_NO_LABELS = BucketValue()
"""Stands for the labels of an entry that has none; told by identity, so no plain bytes: equal ones may be one object."""
