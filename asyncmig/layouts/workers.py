"""Which worker directories a BuildKit root holds, and which of them hold a cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from asyncmig.errors import LayoutError, printable, reason
from asyncmig.layouts.layout import V1, V2
from asyncmig.layouts.paths import exists

WORKER_NAME = re.compile(r"(runc|containerd)-(.+)")
_COPY = re.compile(r"((?:runc|containerd)-(?:overlayfs|native|fuse-overlayfs|stargz|btrfs|zfs|devmapper|nydus))[^A-Za-z0-9].*")
"""What somebody calls a copy of a worker directory: no snapshotter has such a name."""


@dataclass(slots=True)
class Workers:
    """The directories in a root that are named like worker directories, in alphabetical order.

    ``caches`` hold a cache, ``empty`` hold none, ``copies`` are named like copies of a worker directory, which no daemon uses.
    """

    caches: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    @property
    def passed_over(self) -> list[str]:
        """A sentence for each directory that is no cache of a daemon's."""
        texts = [f"{printable(path)}: it holds no cache" for path in self.empty]
        for path in self.copies:
            match = _COPY.fullmatch(os.path.basename(path))
            assert match
            texts.append(
                f"{printable(path)}: by its name a copy of {match[1]}, which no daemon uses; name the directory "
                "itself if you mean it"
            )
        return texts


def find_workers(root: str) -> Workers:
    """The worker directories in ``root``.  Blocking.  Raises :class:`LayoutError` for what can't be looked into."""
    try:
        with os.scandir(root) as entries:
            paths = sorted(e.path for e in entries if WORKER_NAME.fullmatch(e.name) and e.is_dir())
    except OSError as error:
        raise LayoutError(f"{printable(root)}: cannot look into it: {reason(error)}") from error
    found = Workers()
    for path in paths:
        if not any(exists(os.path.join(path, name)) for name in (V1, V2)):
            found.empty.append(path)
        elif _COPY.fullmatch(os.path.basename(path)):
            found.copies.append(path)
        else:
            found.caches.append(path)
    return found
