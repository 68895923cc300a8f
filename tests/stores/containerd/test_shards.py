"""Shards: whatever the ids are, each is in exactly one."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from asyncmig.stores.containerd.shards import EVERYTHING, Shard
from tests.stores.containerd.fake import _python_regex

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4) | st.text("az09:-.\n", min_size=1, max_size=4)


def contains(shard: Shard, name: str) -> bool:
    filters = shard.filters()
    if not filters:
        return True
    [text] = filters
    return re.search(_python_regex(json.loads(text.removeprefix("id~="))), name) is not None


@given(st.sets(IDS, min_size=1, max_size=30), st.integers(1, 5))
def test_halving_loses_nothing_and_counts_nothing_twice(names: set[str], limit: int) -> None:
    found: list[str] = []
    todo = [EVERYTHING]
    while todo:
        shard = todo.pop()
        inside = [name for name in names if contains(shard, name)]
        if len(inside) > limit:
            assert not shard.is_single
            todo.extend(shard.halves())
        else:
            found.extend(inside)
    assert sorted(found) == sorted(names)


@given(st.lists(st.booleans(), max_size=60))
def test_halves_are_never_empty_and_their_parts_meet(turns: list[bool]) -> None:
    shard = EVERYTHING
    for turn in turns:
        if shard.is_single:
            break
        last, first = shard.halves()
        assert first.low <= first.high < last.low <= last.high
        assert first.high + 1 == last.low
        shard = last if turn else first
