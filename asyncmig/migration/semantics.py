"""What a migration writes where there is a choice.

Each set of semantics is one object whose flags the stages ask; no stage knows which one it has.  ``docs/differences.md`` has
the reason, the evidence and the effect of each flag, under the number given here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asyncmig.migration.progress import Stage

SemanticsName = Literal["hardened", "upstream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Semantics:
    """One set of semantics."""

    name: SemanticsName
    tail: tuple[Stage, ...]
    """Order of the stages that change something (2)."""
    completes_existing_leases: bool
    """A lease that exists already is given its resources (1)."""
    leases_holders: bool
    """A record that is not finalised gets a lease on a snapshot of its name, which does not exist yet (3).

    Without, only its blob gets one, if it has a blob.  Its labels go if they are not needed any more.
    """
    examines_blobs: bool
    """The size of each blob is recorded (4), its media type is told from its first bytes (5), and a blob whose data is missing
    counts as missing."""
    whole_chains_only: bool
    """Chain IDs only where every layer below has them, too (6)."""
    repairs: bool
    """Broken records are repaired or dropped, not fatal (7), and the index is put in order."""
    reports_leftovers: bool
    """What carries v1's label and belongs to no record is reported, and released on request; a view that somebody holds a lease
    on is left alone (9)."""
    removes_empty_labels: bool
    """No empty bucket of labels stays where the last label has gone, in files (10)."""
    caveat: str = ""
    """What users of layers with a blob must know."""


UPSTREAM = Semantics(
    name="upstream",
    tail=(Stage.PROTECT, Stage.VERIFY, Stage.RELEASE, Stage.PUBLISH),
    completes_existing_leases=False,
    leases_holders=True,
    examines_blobs=False,
    whole_chains_only=False,
    repairs=False,
    reports_leftovers=False,
    removes_empty_labels=False,
    caveat="their size is not recorded, so exporting or pushing them fails until they are built again (docs/upstream.md)",
)
"""What MigrateV2 of BuildKit v0.27.1 writes, key for key, lease for lease, label for label.

Sources: moby/buildkit v0.27.1 ``cache/migrate_v2.go``.  The stage ``verify`` reads only and is not upstream's.
"""

HARDENED = Semantics(
    name="hardened",
    tail=(Stage.PROTECT, Stage.VERIFY, Stage.PUBLISH, Stage.RELEASE),
    completes_existing_leases=True,
    leases_holders=False,
    examines_blobs=True,
    whole_chains_only=True,
    repairs=True,
    reports_leftovers=True,
    removes_empty_labels=True,
)
"""Upstream's result without its defects."""

SEMANTICS: dict[str, Semantics] = {semantics.name: semantics for semantics in (HARDENED, UPSTREAM)}
"""All semantics, by name."""
DEFAULT = HARDENED
