"""Inputs that have once broken a promise, and the frame of the fuzzing itself.  The campaign is in tests/torture."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from pathlib import Path

import pytest

from asyncmig.bolt import check
from asyncmig.buildkit import gojson
from asyncmig.buildkit.gojson import GoJSONError
from asyncmig.errors import DatabaseError
from asyncmig.migration.journal import JournalFile
from tests.fuzz import files, journals, loop
from tests.fuzz.campaign import Fuzz
from tests.fuzz.images import image_of, sound
from tests.fuzz.loop import CORPUS, BrokenPromise, inputs, regressions, run_loop, run_one
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_has_once_broken_a_promise(name: str) -> None:
    for path in regressions(TARGETS[name]):
        run_one(TARGETS[name], path.read_bytes())


def test_the_corpus_has_no_other_folders() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    """They are what the mutations begin with, so they must be taken as they are."""
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert seeds == list(target.seeds()), "the same each time"
    for data in seeds[:: max(1, len(seeds) // 20)]:
        run_one(target, data)


def test_the_same_seed_makes_the_same_inputs() -> None:
    for target in TARGETS.values():
        assert list(itertools.islice(inputs(target, "1"), 50)) == list(itertools.islice(inputs(target, "1"), 50))
        assert all(len(data) <= target.longest for data in itertools.islice(inputs(target, "2"), 50))


def test_sound_files_are_among_the_images() -> None:
    for number, image in enumerate(sound()):
        assert image_of(bytes([number])) == image.data
    assert image_of(b"\xffabc") == b"abc"


def test_inputs_get_through() -> None:
    """Neither all of them nor none."""
    some = {name: list(itertools.islice(inputs(TARGETS[name], "1"), 100)) for name in ("check", "journal", "json")}
    assert 10 < sum(check(files.write(image_of(data))).clean for data in some["check"]) < 60
    file = JournalFile(str(files.directory() / "v2"))
    read = 0
    for data in some["journal"]:
        Path(file.path).write_bytes(journals.bytes_of(data))
        with suppress(DatabaseError):
            read += file.read() is not None
    assert 20 < read < 90
    valid = 0
    for data in some["json"]:
        with suppress(GoJSONError):
            valid += gojson.decode(data) is not None
    assert 3 < valid < 60


def _target(run: object) -> Target:
    return Target("t", run, lambda: [b"abc", b""], 10)  # type: ignore[arg-type]


def test_a_broken_promise_tells_how_to_repeat_it() -> None:
    def fail(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("no such thing")

    with pytest.raises(BrokenPromise, match=r"no such thing.*python -m tests.fuzz t --hex [0-9a-f]*ff"):
        run_loop(_target(fail), "1", 100_000)


def test_a_hang_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: bytes) -> None:
        while True:
            try:
                time.sleep(1)
            except Exception:
                continue

    monkeypatch.setattr(loop, "SECONDS", 0.2)
    with pytest.raises(BrokenPromise, match="not done after"):
        run_one(_target(hang), b"")


def test_much_memory_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEGABYTES", 8)
    peaks = iter([100 << 20, 120 << 20])
    monkeypatch.setattr(loop, "_peak", lambda: next(peaks))
    with pytest.raises(BrokenPromise, match="20 MB of memory"):
        run_one(_target(len), b"")


def test_cases_of_the_campaign_repeat(tmp_path: Path) -> None:
    names = [case.name for case in Fuzz().cases(tmp_path, 1, 3000)]
    assert names == [case.name for case in Fuzz().cases(tmp_path, 1, 3000)]
    assert len(set(names)) == len(names)
    assert sum(case.weight for case in Fuzz().cases(tmp_path, 1, 3000)) == pytest.approx(3000, abs=20)
