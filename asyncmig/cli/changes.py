"""One change of a plan as one line of JSON."""

from __future__ import annotations

import json

from asyncmig.buildkit.changes import IndexChange, RecordChange
from asyncmig.buildkit.metadata import to_text
from asyncmig.migration.changes import Change, LeaseChange

Values = dict[bytes, bytes | None]


def change_line(change: Change) -> str:
    """The line, without its line end.  Always ASCII; bytes that are not UTF-8 are lone surrogates."""
    if isinstance(change, RecordChange):
        content: dict[str, object] = {"change": "record", "record": change.record}
        content |= {"old": _values(change.old), "new": _values(change.new)}
    elif isinstance(change, IndexChange):
        content = {"change": "index", "key": to_text(change.key), "added": change.is_added}
    elif isinstance(change, LeaseChange):
        content = {"change": "lease", "lease": change.lease, "new": change.is_new, "labels": list(change.labels)}
        content["resources"] = [{"type": resource.type, "id": resource.id} for resource in change.resources]
    else:
        content = {"change": "label", "kind": change.kind, "name": change.name, "label": change.label, "value": change.value}
    return json.dumps(content)


def _values(values: Values | None) -> dict[str, str | None] | None:
    if values is None:
        return None
    return {to_text(key): None if value is None else to_text(value) for key, value in values.items()}
