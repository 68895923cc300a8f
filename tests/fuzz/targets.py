"""All targets."""

from __future__ import annotations

from tests.fuzz import files, images, journals, replies, stores, values, wire
from tests.fuzz.target import Target

TARGETS = {
    target.name: target
    for target in (
        Target("reader", files.reader, images.seeds, 120, weight=20),
        Target("check", files.checker, images.seeds, 120, weight=20),
        Target("edit", files.editor, images.seeds, 400, weight=20),
        Target("json", values.json_value, values.json_seeds, 4000, values.WORDS, weight=200),
        Target("metadata", values.metadata, values.metadata_seeds, 400, weight=8),
        Target("journal", journals.journal, journals.seeds, 6000, journals.WORDS, weight=20),
        Target("replies", replies.replies, replies.seeds, 600, weight=20),
        Target("stores", stores.stores, stores.seeds, 150, weight=3),
        Target("wire", wire.wire, wire.seeds, 120, weight=3),
    )
}
