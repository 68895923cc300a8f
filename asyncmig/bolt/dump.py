"""A database as JSON lines, depth first in key order.

A bucket is ``{"p":[bucket names],"b":true}``, with ``"seq":n`` unless its sequence is 0.  A key is
``{"p":[bucket names],"k":key,"v":value}``; a value that is not printable has ``"vx":hex`` instead of ``"v"``.  A name that is
not printable is ``hex:<hex>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from asyncmig.bolt.check import verify_pages
from asyncmig.bolt.db import Db
from asyncmig.bolt.tx import Tx
from asyncmig.bolt.walk import Checkpoint, no_checkpoint

_CONTROL = re.compile("[\0-\x1f\x7f]")


def dump(db: Db, checkpoint: Checkpoint = no_checkpoint) -> Iterator[str]:
    """The lines of the dump, without line ends.

    Checks the whole file first, so that it raises :class:`CorruptDatabaseError` before the first line and not in the middle.
    """
    if db.pages is not None:
        verify_pages(db.pages, checkpoint)
    with db.view() as tx:
        yield from _lines(tx, checkpoint)


def _lines(tx: Tx, checkpoint: Checkpoint) -> Iterator[str]:
    # Iterative, because buckets may be nested deeper than Python's stack.
    stack = [(tx.root, tx.root.items(), "[]")]
    while stack:
        bucket, items, path = stack[-1]
        item = next(items, None)
        if item is None:
            stack.pop()
            continue
        checkpoint()
        key, value = item
        if value is not None:
            yield f'{{"p":{path},"k":{_name(key)},{_value(value)}}}'
            continue
        child = bucket.bucket(key)
        assert child is not None
        child_path = path[:-1] + ("," if len(path) > 2 else "") + _name(key) + "]"
        yield f'{{"p":{child_path},"b":true' + (f',"seq":{child.sequence}}}' if child.sequence else "}")
        stack.append((child, child.items(), child_path))


def _printable(raw: bytes) -> str | None:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def _name(raw: bytes) -> str:
    text = _printable(raw)
    return _quote("hex:" + raw.hex() if text is None else text)


def _value(raw: bytes) -> str:
    text = _printable(raw)
    return f'"vx":"{raw.hex()}"' if text is None else f'"v":{_quote(text)}'


def _quote(text: str) -> str:
    # Escape what a terminal could take for a command (C1 controls, marks that change the direction of text), so that a dump is
    # safe to look at.  This includes U+2028 and U+2029; Go's encoder, whose form this is, always escapes those.
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted if quoted.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)
