"""Full garbage collections are put off, and the setting is put back."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from asyncmig.runs.collector import few_full_collections


@pytest.fixture(autouse=True)
def _thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_they_are_put_off_within_the_block_only() -> None:
    with few_full_collections():
        assert gc.get_threshold() == (700, 10, 1000)
    assert gc.get_threshold() == (700, 10, 10)


def test_blocks_may_overlap() -> None:
    first, second = few_full_collections(), few_full_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[2] == 1000
    second.__exit__(None, None, None)
    assert gc.get_threshold() == (700, 10, 10)


def test_what_somebody_else_sets_stays() -> None:
    with few_full_collections():
        gc.set_threshold(5000, 20, 30)
    assert gc.get_threshold() == (5000, 20, 30)


@pytest.mark.parametrize("thresholds", [(0, 10, 10), (700, 10, 5000)])
def test_who_collects_less_is_left_alone(thresholds: tuple[int, int, int]) -> None:
    gc.set_threshold(*thresholds)
    with few_full_collections():
        assert gc.get_threshold() == thresholds
    assert gc.get_threshold() == thresholds
