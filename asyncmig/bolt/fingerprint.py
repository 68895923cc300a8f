"""A digest of what a database holds, which a transaction that changes nothing leaves as it is.

bbolt writes such a transaction, too: a meta page with a higher transaction id, and the freelist in another place.  All other
pages stay where they are.
"""

from __future__ import annotations

from hashlib import sha256

from asyncmig.bolt.pagefile import PageFile
from asyncmig.bolt.walk import Checkpoint, free_pages

_BLOCK = 256
"""Pages that are read at a time."""


def content_digest(pages: PageFile, checkpoint: Checkpoint) -> str:
    """The digest, in hex, of the root page's id and of every page that belongs to a bucket.

    Equal digests mean equal contents.  Of equal contents the digests may differ, if a transaction has written them anew.
    Blocking.  Raises :class:`CorruptDatabaseError` for a file that has no usable freelist or tree.
    """
    unused = _unused(pages, checkpoint)
    size, digest = pages.page_size, sha256(b"%d" % pages.meta.root)
    for first in range(0, pages.high_water_mark, _BLOCK):
        checkpoint()
        count = min(_BLOCK, pages.high_water_mark - first)
        used = [i for i in range(count) if not unused[first + i]]
        image = pages.read(count * size, first * size) if used else b""
        for i in used:
            digest.update(b"%d" % (first + i))
            digest.update(image[i * size : (i + 1) * size])
    return digest.hexdigest()


def _unused(pages: PageFile, checkpoint: Checkpoint) -> bytearray:
    """A byte for each page, 1 for those that belong to no bucket: meta pages, freelist, free pages."""
    unused = bytearray(pages.high_water_mark)
    unused[0:2] = b"\1\1"
    free = pages.freelist()
    if free is None:  # the file stores none
        free = free_pages(pages, checkpoint)
    else:
        freelist = pages.page(pages.meta.freelist)
        last = freelist.id + freelist.overflow
        unused[freelist.id : last + 1] = b"\1" * (last + 1 - freelist.id)
    for page_id in free:
        unused[page_id] = 1
    return unused
