"""Fixtures for tests against the real programs.

A program that is missing skips the test, so that the suite runs anywhere. Where it must not pass by
skipping, as in CI, set ASYNCMIG_REQUIRE_TOOLS=1: then a missing program is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import missing
from tests.interop.boltool import BoltTool, build_boltool, build_go_program, find_go
from tests.interop.containerd import Containerd, find_containerd


class ContainerdFactory(Protocol):
    """Makes a containerd with a directory of its own; it starts when a with block is entered."""

    def __call__(self, *, root: Path | None = None, automatic_gc: bool = True) -> Containerd: ...


@pytest.fixture(scope="session")
def boltool(tmp_path_factory: pytest.TempPathFactory) -> BoltTool:
    """The real bbolt, compiled once a session."""
    _require(find_go())
    return BoltTool(build_boltool(tmp_path_factory.mktemp("boltool")))


@pytest.fixture(scope="session")
def gojson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that answers how Go reads and writes JSON."""
    _require(find_go())
    return build_go_program(Path(__file__).parent / "gojson", tmp_path_factory.mktemp("gojson"))


@pytest.fixture(scope="session")
def containerd_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdFactory]:
    """Real containerds; one that a test forgot is stopped at the end of the session."""
    _require(find_containerd())
    made: list[Containerd] = []

    def make(*, root: Path | None = None, automatic_gc: bool = True) -> Containerd:
        directory = tmp_path_factory.mktemp("containerd")
        made.append(Containerd(directory, root=root, automatic_gc=automatic_gc))
        return made[-1]

    yield make
    for containerd in made:
        containerd.close()


@pytest.fixture
def daemon(containerd_factory: ContainerdFactory) -> Iterator[Containerd]:
    """A containerd that collects no garbage before it is told to."""
    with containerd_factory(automatic_gc=False) as running:
        yield running


def _require(reason: str | None) -> None:
    if reason is not None:
        missing(reason)
