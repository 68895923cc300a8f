"""What a caller of the entry points may choose."""

from __future__ import annotations

from dataclasses import dataclass

from asyncmig.errors import AsyncmigError, StrPath, printable
from asyncmig.migration.decisions import OnBroken, Policy
from asyncmig.migration.semantics import DEFAULT, SEMANTICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    ``semantics``: what to write, a name of :data:`SEMANTICS`.  ``layout``: ``oci`` (the stores lie in the worker directory),
    ``containerd`` (they are in a containerd) or ``auto``.  ``snapshotter``: its name; told from the directory if ``None``.
    ``dry_run``: change nothing.  ``trust_others``: accept that files or directories of the cache belong to other users, or that
    everybody may write to them, so that others could change them meanwhile (docs/decisions/0009-trust.md).

    For hardened semantics: ``on_broken`` tells what is done about broken records, ``max_dropped`` is the percentage of all
    records that may be dropped, ``strip_leftovers`` takes v1's label from what belongs to no record, too.

    For a cache in a containerd: ``containerd_root`` is the root directory of a stopped one; otherwise it must run, and
    ``address`` is its unix socket (a path, or ``unix:///path``; ``None``: ``$CONTAINERD_ADDRESS``, or
    ``/run/containerd/containerd.sock``).  ``namespace``: containerd's (``None``: ``$CONTAINERD_NAMESPACE``, or ``buildkit``).
    ``concurrency``: calls at a time to a running containerd.  ``timeout``: seconds for which one that has gone, or does not
    answer, is waited for before the migration fails.
    """

    semantics: str = DEFAULT.name
    layout: str = "auto"
    snapshotter: str | None = None
    namespace: str | None = None
    containerd_root: StrPath | None = None
    address: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    on_broken: OnBroken | str = OnBroken.REPAIR
    max_dropped: float = 5.0
    strip_leftovers: bool = False
    dry_run: bool = False
    trust_others: bool = False

    def check(self) -> None:
        """Raise :class:`AsyncmigError` for a value that makes no sense."""
        if self.semantics not in SEMANTICS:
            raise AsyncmigError(f"unknown semantics {printable(self.semantics)}; choose {' or '.join(SEMANTICS)}")
        if self.on_broken not in list(OnBroken):
            raise AsyncmigError(f"unknown on_broken {printable(self.on_broken)}; choose {', '.join(OnBroken)}")
        if self.concurrency < 1:
            raise AsyncmigError(f"concurrency is {self.concurrency}; it must be 1 or more")
        if not 0 <= self.timeout < float("inf"):
            raise AsyncmigError(f"timeout is {self.timeout}; give a number of seconds, 0 or more")
        if not 0 <= self.max_dropped <= 100:
            raise AsyncmigError(f"max_dropped is {self.max_dropped}; give a percentage from 0 to 100")
        if not SEMANTICS[self.semantics].repairs and self.policy != Policy():
            raise AsyncmigError(f"on_broken, max_dropped and strip_leftovers need hardened semantics, not {self.semantics}")

    @property
    def policy(self) -> Policy:
        """What is wanted where a cache is not as it should be."""
        return Policy(OnBroken(self.on_broken), self.max_dropped, self.strip_leftovers)
