"""A BuildKit root with several worker directories: a command means the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import asyncmig
from asyncmig import AsyncmigError, IncompleteMigrationError, LayoutError
from asyncmig.migration import pipeline
from tests.caches import sample_cache
from tests.cli.test_cli import run
from tests.states import tree_state


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two caches, and what is none: an empty worker directory, and a copy of one."""
    root = tmp_path / "buildkit"
    for name in ("runc-native", "runc-overlayfs", "runc-overlayfs.bak"):
        sample_cache().write(root / name, snapshotter=name.split("-")[1].removesuffix(".bak"))
    (root / "containerd-overlayfs").mkdir()
    return root


def migrated(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/metadata_v2.db"))


def headlines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith(" ") and "runc-" in line]


def test_every_command_acts_on_every_cache(root: Path) -> None:
    caches = [f"{root}/runc-native", f"{root}/runc-overlayfs"]
    before = tree_state(root)
    plan = run("plan", root)
    assert (plan.returncode, headlines(plan.stdout)) == (0, [f"plan: would migrate {cache}" for cache in caches])
    assert plan.stderr.splitlines() == [
        f"passed over: {root}/containerd-overlayfs: it holds no cache",
        f"passed over: {root}/runc-overlayfs.bak: by its name a copy of runc-overlayfs, which no daemon uses; "
        "name the directory itself if you mean it",
    ]
    assert tree_state(root) == before
    done = run("migrate", root)
    assert (done.returncode, headlines(done.stdout)) == (0, [f"migrated {cache}" for cache in caches])
    assert migrated(root) == ["runc-native", "runc-overlayfs"]
    assert headlines(run("migrate", root).stdout) == [f"already migrated: {cache}" for cache in caches]
    checked = run("verify", root)
    assert (checked.returncode, headlines(checked.stdout)) == (0, [f"clean: {cache}" for cache in caches])
    back = run("rollback", root)
    assert (back.returncode, headlines(back.stdout)) == (0, [f"rolled back {cache}" for cache in caches])
    assert migrated(root) == []


def test_what_is_passed_over_need_not_be_read(root: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "asyncmig", "migrate", root], stderr=full, check=False, timeout=300)
    assert (done.returncode, migrated(root)) == (0, ["runc-native", "runc-overlayfs"])


def test_one_of_them(root: Path) -> None:
    assert run("migrate", root, "--worker", "runc-overlayfs").returncode == 0
    assert migrated(root) == ["runc-overlayfs"]
    both = run("migrate", root)
    assert headlines(both.stdout) == [f"migrated {root}/runc-native", f"already migrated: {root}/runc-overlayfs"]
    assert run("rollback", root, "--worker", "runc-native").returncode == 0
    assert migrated(root) == ["runc-overlayfs"]
    for name in ("", "..", "a/b"):
        assert run("migrate", root, "--worker", name).returncode == 2
    assert run("migrate", root, "--worker", "runc-nowhere").returncode == 1


def test_the_exit_code_is_the_worst_and_the_others_have_their_turn(root: Path) -> None:
    (root / "runc-native" / "containerdmeta.db").write_bytes(b"")
    done = run("migrate", root)
    assert done.returncode == 1
    assert headlines(done.stdout) == [f"migrated {root}/runc-overlayfs"]
    assert f"{root}/runc-native/containerdmeta.db" in done.stderr


def test_reports_and_json_of_several(root: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run("plan", root, "--json").stdout.splitlines()]
    assert [line["cache"] for line in lines if "cache" in line] == [f"{root}/runc-native", f"{root}/runc-overlayfs"]
    assert len([line for line in lines if "report" in line]) == 2
    assert run("migrate", root, "--report", tmp_path / "r.json").returncode == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert [cache["outcome"] for cache in report["caches"]] == ["migrated", "migrated"]
    assert [cache["clean"] for cache in json.loads(run("verify", root, "--json").stdout)["caches"]] == [True, True]
    printed = json.loads(run("rollback", root, "--report", "-").stdout)
    assert [cache["outcome"] for cache in printed["caches"]] == ["rolled-back", "rolled-back"]


@pytest.mark.parametrize("option", ["--snapshotter", "--namespace", "--address", "--containerd-root"])
def test_an_option_about_one_cache_asks_which(option: str, root: Path) -> None:
    before = tree_state(root)
    for verb in ("plan", "migrate", "verify", "rollback"):
        done = run(verb, root, option, "other")
        assert done.returncode == 2
        assert f"{option} is about one cache, and PATH holds several: name one with --worker (runc-native, runc-overlayfs)" in (
            " ".join(done.stderr.split())
        )
    assert tree_state(root) == before


@pytest.mark.anyio
async def test_the_library_acts_on_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells which there are, those of interrupted runs first."""
    for entry_point in (asyncmig.plan, asyncmig.migrate, asyncmig.verify, asyncmig.rollback):
        with pytest.raises(LayoutError, match="holds several caches, name one of them: runc-native, runc-overlayfs"):
            await entry_point(root)
    assert await asyncmig.find_caches(root) == [f"{root}/runc-native", f"{root}/runc-overlayfs"]

    def fail(*_: object) -> None:
        raise AsyncmigError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "release", fail)
        with pytest.raises(IncompleteMigrationError):
            await asyncmig.migrate(root / "runc-overlayfs")
    assert await asyncmig.find_caches(root) == [f"{root}/runc-overlayfs", f"{root}/runc-native"]
    assert await asyncmig.find_caches(root / "runc-native") == [f"{root}/runc-native"]


SECOND_IS_INTERRUPTED = """
import os, signal, sys
from asyncmig.migration import pipeline
real, runs = pipeline.Pipeline.prepare, []
async def prepare(self):
    runs.append(self)
    if len(runs) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    await real(self)
pipeline.Pipeline.prepare = prepare
from asyncmig.cli.main import main
main()
"""


def test_a_signal_stops_the_second_cache_as_well(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SECOND_IS_INTERRUPTED, "migrate", root], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, migrated(root)) == (143, ["runc-native"])
    assert "the caches before this one are done" in done.stderr
