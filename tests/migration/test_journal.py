"""A journal that is damaged, or that somebody else has made, is refused before anything is done by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncmig.errors import DatabaseError
from asyncmig.migration.journal import VERSION, Journal, JournalFile
from asyncmig.stores.ports import Resource

HEAD = {
    "asyncmig_journal": VERSION,
    "semantics": "hardened",
    "namespace": "n",
    "snapshotter": "s",
    "place": "",
    "v1": "1",
    "v2": "2",
}


def read(directory: Path, *lines: Any) -> Journal | None:
    """What is made of these lines; those that are no texts are encoded."""
    file = JournalFile(str(directory / "metadata_v2.db"))
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    Path(file.path).write_text(text, encoding="utf-8")
    return file.read()


def test_a_sound_one(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD, ["lease", "a", [["content", "b"]]], ["lease", "\udcff", None], ["end"], ["complete"])
    assert found is not None
    assert found.leases == {"a": (Resource("content", "b"),), "\udcff": None}
    assert found.is_complete


@pytest.mark.parametrize(
    "line",
    [
        5,
        "end",
        {},
        [],
        [["lease"]],
        ["lease", "a"],
        ["lease", 5, None],
        ["lease", "a", {}],
        ["lease", "a", ["xy"]],
        ["lease", "a", [["content", 5]]],
        ["lease", "a", [["content", "b", "c"]]],
        ["foreign", None],
        ["foreign", ["a"]],
        ["snapshot", "a", None],
        ["snapshot", "a", True],
        ["blob", 1.5, "x"],
        ["blob", "\ud800", "x"],
        ["blob", "a", "x", "y"],
        ["another", "a"],
        "[" * 100_000,
        "\u00e9",
    ],
    ids=lambda line: repr(line)[:30],
)
def test_a_line_that_is_none(tmp_path: Path, line: object) -> None:
    with pytest.raises(DatabaseError, match="this is no journal, or another version of asyncmig wrote it"):
        read(tmp_path, HEAD, line, ["end"])


@pytest.mark.parametrize(
    "head",
    [
        5,
        [],
        "[" * 100_000,
        "",
        {},
        HEAD | {"asyncmig_journal": 1},
        HEAD | {"v1": None},
        HEAD | {"namespace": 5},
        HEAD | {"leases": 5},
        HEAD | {"is_complete": True},
        {name: text for name, text in HEAD.items() if name != "v2"},
    ],
    ids=lambda head: repr(head)[:40],
)
def test_a_head_that_is_none(tmp_path: Path, head: object) -> None:
    with pytest.raises(DatabaseError, match="this is no journal, or another version of asyncmig wrote it"):
        read(tmp_path, head, ["end"])


def test_what_is_behind_the_end_and_torn_says_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD, ["end"], "[" * 100_000, '["compl', 5, ["rolling back"])
    assert found is not None
    assert (found.is_complete, found.is_rolling_back) == (False, True)
