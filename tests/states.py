"""Comparing states: dumps of databases, with times made equal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asyncmig.bolt import Db, dump

_TIMES = {"createdat", "updatedat", "containerd.io/gc.flat", "containerd.io/gc.root", "containerd.io/gc.expire"}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z")


def dump_lines(path: Path) -> list[str]:
    """The dump of a database."""
    with Db.open(path) as db:
        return list(dump(db))


def normalized(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Dump lines in a form in which two runs can be compared: times are T, the schema version is V.

    The form of a time is checked on the way, so that nonsense does not compare equal.
    """
    result = []
    for line in lines:
        entry = json.loads(line)
        key = entry.get("k")
        if key in _TIMES and entry.get("v") != "T":
            check_time(entry)
            entry.pop("vx", None)
            entry["v"] = "T"
        if key == "version":
            entry = {"p": entry["p"], "k": key, "vx": "V"}
        result.append(entry)
    return result


def check_time(entry: dict[str, Any]) -> None:
    """Assert that a dumped time is Go's binary form in UTC, or RFC 3339 with nanoseconds."""
    if "vx" in entry:
        raw = bytes.fromhex(entry["vx"])
        assert (len(raw), raw[0], raw[13:]) == (15, 1, b"\xff\xff"), entry
    else:
        assert _RFC3339.fullmatch(entry["v"]), entry


def containerd_state(path: Path) -> list[dict[str, Any]]:
    """Normalized dump of a containerd or snapshotter database."""
    return normalized(dump_lines(path))


def tree_state(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file below ``directory``."""
    return {
        str(p.relative_to(directory)): (p.stat().st_mode, p.read_bytes())
        for p in sorted(directory.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }


def lasting(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What a dump of containerd's metadata says: times of updates left out, and buckets that are empty.

    Neither comes back when a change is undone.
    """
    kept: list[dict[str, Any]] = []
    for entry in reversed([json.loads(line) for line in lines]):
        if entry.get("k") == "updatedat":
            continue
        if entry.get("b") and not (kept and kept[-1]["p"][: len(entry["p"])] == entry["p"]):
            continue  # nothing of what follows it lies in it
        kept.append(entry)
    return kept[::-1]
