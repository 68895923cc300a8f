"""What a migration writes where there is a choice.

Each set of semantics is one object that the stages ask; no stage knows which one it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncmig.buildkit.keys import DOCKER_LAYER_GZIP
from asyncmig.buildkit.record import Record
from asyncmig.migration.progress import Stage


@dataclass(frozen=True, slots=True)
class Semantics:
    """One set of semantics."""

    name: str
    tail: tuple[Stage, ...]
    """Order of the stages that change something."""
    completes_existing_leases: bool
    """Whether a lease that exists already is given its resources."""
    caveat: str
    """What users of layers with a blob must know; "" if nothing."""

    def media_type(self, record: Record) -> str:
        """Media type of the record's blob."""
        return DOCKER_LAYER_GZIP

    def needs_lease(self, record: Record) -> bool:
        """Whether the record gets a lease."""
        return True

    def is_released(self, record: Record) -> bool:
        """Whether the v1 labels of the record's snapshot and blob are removed."""
        return not record.is_holder


UPSTREAM = Semantics(
    name="upstream",
    tail=(Stage.PROTECT, Stage.VERIFY, Stage.RELEASE, Stage.PUBLISH),
    completes_existing_leases=False,
    caveat="their size is not recorded, so exporting or pushing them fails until they are built anew (docs/upstream.md)",
)
"""What MigrateV2 of BuildKit v0.27.1 writes, key for key, lease for lease, label for label.

Sources: moby/buildkit v0.27.1 ``cache/migrate_v2.go``.  The stage ``verify`` reads only and is not upstream's.
"""

SEMANTICS = {semantics.name: semantics for semantics in (UPSTREAM,)}
"""All semantics, by name."""
