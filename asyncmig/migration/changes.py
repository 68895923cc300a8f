"""One change that a migration makes, as a plan tells it."""

from __future__ import annotations

from dataclasses import dataclass

from asyncmig.buildkit.changes import IndexChange, RecordChange
from asyncmig.stores.ports import Resource


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """A lease that is made (``is_new``), with the names of its labels, or completed: with the resources that it gets."""

    lease: str
    is_new: bool
    labels: tuple[str, ...]
    resources: tuple[Resource, ...]


@dataclass(frozen=True, slots=True)
class LabelChange:
    """A label that goes: ``kind`` is ``snapshot`` or ``blob``, ``name`` its key or digest, ``value`` that of the label."""

    kind: str
    name: str
    label: str
    value: str


Change = RecordChange | IndexChange | LeaseChange | LabelChange
