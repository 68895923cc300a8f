"""What a caller hears of a run: every stage with a total deals with exactly so many items, and ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options, Progress, Stage
from asyncmig.migration.semantics import Semantics
from tests.caches import V1Cache, marked_cache, sample_cache

pytestmark = pytest.mark.anyio


class Listener(Progress):
    def __init__(self) -> None:
        self.planned: tuple[Stage, ...] = ()
        self.begun: list[Stage] = []
        self.done_with: list[Stage] = []
        self.totals: dict[Stage, int | None] = {}
        self.done: dict[Stage, int] = defaultdict(int)

    def begin(self, stages: tuple[Stage, ...]) -> None:
        assert not self.begun
        self.planned = stages

    def stage(self, stage: Stage, total: int | None) -> None:
        self.begun.append(stage)
        self.totals[stage] = total

    def advance(self, count: int) -> None:
        self.done[self.begun[-1]] += count

    def end_stage(self, stage: Stage) -> None:
        assert stage is self.begun[-1]
        self.done_with.append(stage)

    def check(self) -> None:
        assert self.planned
        assert list(self.planned) == self.begun == self.done_with
        totals = {stage: total for stage, total in self.totals.items() if total is not None}
        assert {stage: self.done[stage] for stage in totals} == totals


@pytest.mark.parametrize("make", [sample_cache, marked_cache])
async def test_stages_are_planned_and_end_at_their_total(
    make: Callable[[], V1Cache], semantics: Semantics, tmp_path: Path
) -> None:
    worker = make().write(tmp_path / "runc-overlayfs")
    options = Options(semantics=semantics.name)
    for entry_point in (asyncmig.plan, asyncmig.migrate, asyncmig.verify, asyncmig.rollback):
        listener = Listener()
        await entry_point(worker, options, progress=listener)
        listener.check()


async def test_a_stage_that_fails_does_not_end(tmp_path: Path) -> None:
    cache = sample_cache()
    cache.records["broken"] = {}
    listener = Listener()
    with pytest.raises(asyncmig.RecordError):
        await asyncmig.migrate(cache.write(tmp_path / "runc-overlayfs"), Options(semantics="upstream"), progress=listener)
    assert (listener.begun[-1], listener.done_with[-1]) == (Stage.RESOLVE, Stage.READ)
