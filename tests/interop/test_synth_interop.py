"""What the real bbolt thinks of made-up caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncmig.synth import synthesize
from tests.interop.boltool import BoltTool


@pytest.mark.parametrize("records", [0, 1, 3, 200, 3000])
@pytest.mark.parametrize("name", ["metadata.db", "containerdmeta.db", "snapshots/metadata.db"])
def test_bbolt_finds_nothing_wrong(tmp_path: Path, boltool: BoltTool, records: int, name: str) -> None:
    made = synthesize(tmp_path, records=records, bare=True)
    result = boltool.check(Path(made.directory, name))
    assert result.clean, result.output
