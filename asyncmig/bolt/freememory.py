"""How much memory the kernel could give for pages of files without taking it from somebody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_AVAILABLE = re.compile(rb"^MemAvailable:\s*(\d+) kB$", re.MULTILINE)


def free_memory() -> int | None:
    """Bytes that are available, at most the limit of this process's control groups; ``None`` where that can't be told.

    What a control group uses already is not looked at: most of that is pages of files, which make room for others.
    """
    try:
        found = _AVAILABLE.search(_MEMINFO.read_bytes())
    except OSError:
        return None
    return min(int(found[1]) * 1024, *_limits(), _NO_LIMIT) if found else None


_NO_LIMIT = 1 << 63


def _limits() -> Iterator[int]:
    """The memory limits of the control groups that this process is in, versions 1 and 2."""
    try:
        groups = _OWN_GROUPS.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _limits_upwards(_GROUPS, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_upwards(_GROUPS / "memory", path, "memory.limit_in_bytes")


def _limits_upwards(mount: Path, path: str, name: str) -> Iterator[int]:
    # Within a container the path may be one that only the machine outside has; then the mount itself is the own group.
    group = mount / path.lstrip("/")
    for place in (group, *group.parents):
        with suppress(OSError, ValueError):
            yield int((place / name).read_bytes())  # "max" is none
        if place == mount:
            return
