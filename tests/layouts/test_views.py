"""Mounts that show a cache's files with locks of their own: told and refused, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

import asyncmig
from asyncmig import LayoutError, Options, Outcome
from asyncmig.bolt import Db
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.errors import DatabaseLockedError
from asyncmig.layouts import views
from asyncmig.layouts.detect import find_layout
from asyncmig.layouts.views import check_views
from tests.caches import sample_cache
from tests.conftest import missing
from tests.layouts.test_trust import in_containerd
from tests.states import tree_state

pytestmark = pytest.mark.anyio

Mount = Callable[..., Path]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts something until the end of the test."""
    with ExitStack() as stack:

        def do(*args: str | Path, at: Path, cwd: Path | None = None) -> Path:
            at.mkdir(exist_ok=True)
            done = subprocess.run(["mount", *args, at], cwd=cwd, capture_output=True, text=True, check=False)
            if done.returncode:
                missing(f"no such mount can be made here: {done.stderr.strip()}")
            stack.callback(partial(subprocess.run, ["umount", at], check=True))
            return at

        yield do


def layers(place: Path, upper: str = "upper", lower: str = "lower") -> str:
    """Options of an overlay with layers there, which are made."""
    for name in (upper, lower, "work"):
        (place / name).mkdir(parents=True, exist_ok=True)
    return f"lowerdir={escaped(place / lower)},upperdir={escaped(place / upper)},workdir={place / 'work'}"


def escaped(path: Path) -> str:
    """As the kernel takes it in the options of an overlay."""
    text = str(path)
    for letter in "\\,:":
        text = text.replace(letter, f"\\{letter}")
    return text


@contextmanager
def elsewhere(script: str, *args: str | Path) -> Iterator[int]:
    """A process in a mount namespace of its own, behind these commands; its id."""
    line = f"set -e; {script}; echo ready; read forever"
    command = ["unshare", "--mount", "sh", "-c", line, "sh", *map(str, args)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                assert process.stderr is not None
                missing(f"no such mount can be made here: {process.stderr.read().strip()}")
            yield process.pid
        finally:
            process.kill()


def check(worker: Path) -> None:
    check_views(no_checkpoint, find_layout(worker))


# -- overlays


@pytest.mark.parametrize("layer", ["upper", "lower"])
async def test_the_layer_of_an_overlay_is_not_changed(layer: str, tmp_path: Path, mount: Mount) -> None:
    options = layers(tmp_path)
    worker = sample_cache().write(tmp_path / layer / "buildkit" / "runc-overlayfs")
    merged = mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    before = tree_state(worker)
    expected = rf"^{worker}: lies in {tmp_path / layer}, which an overlay at {merged} shows, too"
    with pytest.raises(LayoutError, match=expected):
        await asyncmig.migrate(worker)
    report = await asyncmig.plan(worker)
    assert report.outcome is Outcome.WOULD_MIGRATE
    assert report.refused.startswith(f"{worker}: lies in {tmp_path / layer}")
    assert tree_state(worker) == before


async def test_the_remedies_that_the_message_names_work(tmp_path: Path, mount: Mount) -> None:
    options = layers(tmp_path)
    worker = sample_cache().write(tmp_path / "upper" / "buildkit" / "runc-overlayfs")
    merged = mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    inside = merged / "buildkit" / "runc-overlayfs"
    with Db.open(inside / "containerdmeta.db"):
        with Db.open(worker / "containerdmeta.db", writable=True):
            pass  # this is why: the locks do not meet
        with pytest.raises(DatabaseLockedError):
            await asyncmig.migrate(inside)
    assert (await asyncmig.migrate(inside)).outcome is Outcome.MIGRATED
    assert (await asyncmig.verify(inside)).clean


@pytest.mark.parametrize("dry_run", [True, False])
async def test_neither_is_a_rollback_made_there_nor_a_completion(dry_run: bool, tmp_path: Path, mount: Mount) -> None:
    options = layers(tmp_path)
    worker = sample_cache().write(tmp_path / "upper" / "runc-overlayfs")
    await asyncmig.migrate(worker)
    mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    with pytest.raises(LayoutError, match=f"{worker}: lies in"):
        await asyncmig.rollback(worker, Options(dry_run=dry_run))
    journal = worker / "metadata_v2.db.journal"
    journal.write_text(journal.read_text().replace('\n["complete"]\n', ""))
    before = tree_state(worker)
    if dry_run:
        assert f"{worker}: lies in" in (await asyncmig.plan(worker)).refused
    else:
        with pytest.raises(LayoutError, match=f"{worker}: lies in"):
            await asyncmig.migrate(worker)
    assert tree_state(worker) == before


@pytest.mark.parametrize("part", ["metadata.v1.bolt", "snapshotter.v1.overlayfs"])
async def test_nor_are_the_stores_of_a_stopped_containerd(part: str, tmp_path: Path, mount: Mount) -> None:
    worker, root = in_containerd(tmp_path)
    directory = root / f"io.containerd.{part}"
    (tmp_path / "work").mkdir()
    mount("-t", "overlay", "-o", f"lowerdir={directory}:{worker.parent.parent / 'made'}", "overlay", at=tmp_path / "merged")
    with pytest.raises(LayoutError, match=f"{directory}: lies in {directory}, which an overlay"):
        await asyncmig.migrate(worker, Options(containerd_root=root))


@pytest.mark.parametrize("name", ["a b", "a,b", "a:b", "a\\b", "a#b", "ä", "a\\:b", "a\nb"])
@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_whatever_a_layer_is_called(name: str, layer: str, tmp_path: Path, mount: Mount) -> None:
    options = layers(tmp_path, **{layer: name})
    worker = sample_cache().write(tmp_path / name / "runc-overlayfs")
    mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    with pytest.raises(LayoutError, match="which an overlay at"):
        check(worker)


def test_any_of_many_lower_layers(tmp_path: Path, mount: Mount) -> None:
    names = [f"layer{i}" for i in range(20)]
    for name in names:
        (tmp_path / name).mkdir()
    worker = sample_cache().write(tmp_path / "layer13" / "runc-overlayfs")
    options = "lowerdir=" + ":".join(str(tmp_path / name) for name in names)
    mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    with pytest.raises(LayoutError, match=f"lies in {tmp_path / 'layer13'}, which"):
        check(worker)


@pytest.mark.parametrize("bound", ["upper/buildkit", "upper", "upper/buildkit/runc-overlayfs"])
def test_a_bind_mount_hides_no_layer(bound: str, tmp_path: Path, mount: Mount) -> None:
    options = layers(tmp_path)
    worker = sample_cache().write(tmp_path / "upper" / "buildkit" / "runc-overlayfs")
    mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    shown = mount("--bind", tmp_path / bound, at=tmp_path / "bound")
    with pytest.raises(LayoutError, match="which an overlay at"):
        check(shown / worker.relative_to(tmp_path / bound))
    mount("--bind", worker, at=worker)  # as daemons do with their directories: it is what the layer has there as well
    with pytest.raises(LayoutError, match="which an overlay at"):
        check(worker)


def test_what_another_mount_has_in_its_place_is_not_in_the_layer(tmp_path: Path, mount: Mount) -> None:
    options = layers(tmp_path)
    sample_cache().write(tmp_path / "volume" / "runc-overlayfs")
    mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged")
    check(mount("--bind", tmp_path / "volume", at=tmp_path / "upper" / "buildkit") / "runc-overlayfs")


async def test_overlays_of_its_snapshots_and_beside_it_are_no_reason(tmp_path: Path, mount: Mount) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    options = layers(worker / "snapshots" / "snapshots" / "1")
    mount("-t", "overlay", "-o", options, "overlay", at=tmp_path / "container")
    mount("-t", "overlay", "-o", layers(tmp_path / "runc-overlayfs-2"), "overlay", at=tmp_path / "beside")
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


@pytest.mark.parametrize("start", [".", ".."])
def test_layers_that_are_relative_to_an_unknown_directory(start: str, tmp_path: Path, mount: Mount) -> None:
    place = tmp_path / "here"
    layers(place)
    worker = sample_cache().write(place / "upper" / "runc-overlayfs")
    prefix = "" if start == "." else "here/"
    options = f"lowerdir={prefix}lower,upperdir={prefix}upper,workdir={prefix}work"
    script = f"cd '{place / start}' && mount -i -t overlay -o {options} overlay '{tmp_path / 'merged'}'"
    command = ["sh", "-c", script]
    (tmp_path / "merged").mkdir()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        missing(f"no such mount can be made here: {done.stderr.strip()}")
    try:
        # Others of the same name are others, even if they have the same in them.
        check(sample_cache().write(tmp_path / "there" / prefix / "upper" / "runc-overlayfs"))
        check(sample_cache().write(tmp_path / "there" / prefix / "upper" / "runc-native"))
        with pytest.raises(LayoutError, match=f"lies in {prefix}upper, which an overlay at {tmp_path / 'merged'}"):
            check(worker)
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)


# -- other mount namespaces


@pytest.mark.parametrize("layer", ["upper", "lower"])
async def test_a_mount_that_only_another_process_sees(layer: str, tmp_path: Path) -> None:
    options = layers(tmp_path)
    worker = sample_cache().write(tmp_path / layer / "runc-overlayfs")
    (tmp_path / "merged").mkdir()
    with elsewhere('mount -t overlay -o "$1" overlay "$2"', options, tmp_path / "merged") as pid:
        expected = (
            rf"{worker}: lies in {tmp_path / layer}, which an overlay at {tmp_path / 'merged'} \(as process {pid} sees it\)"
        )
        with pytest.raises(LayoutError, match=expected):
            await asyncmig.migrate(worker)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


def test_a_layer_whose_path_is_of_another_namespace(tmp_path: Path) -> None:
    options = layers(tmp_path / "theirs")
    worker = sample_cache().write(tmp_path / "ours" / "buildkit" / "runc-overlayfs")
    for name in ("upper", "work"):
        (tmp_path / "ours" / name).mkdir()
    (tmp_path / "merged").mkdir()
    script = 'mount --bind "$1" "$2"; mkdir -p "$2/upper"; mount -t overlay -o "$3" overlay "$4"'
    options = options.replace(f"upperdir={tmp_path / 'theirs' / 'upper'}", f"upperdir={tmp_path / 'theirs' / 'buildkit'}")
    with (
        elsewhere(script, tmp_path / "ours", tmp_path / "theirs", options.replace("lower,", "upper,"), tmp_path / "merged"),
        pytest.raises(LayoutError, match=f"{worker}: lies in {tmp_path / 'theirs' / 'buildkit'}, which an overlay"),
    ):
        check(worker)


def test_a_process_with_a_root_of_its_own(tmp_path: Path) -> None:
    """Such a process sees other mounts of the same namespace, with other paths."""
    root = tmp_path / "root"
    for name in ("proc", "bin", "lib", "lib64", "usr", "merged", "lower", "upper", "work"):
        (root / name).mkdir(parents=True)
    worker = sample_cache().write(root / "upper" / "runc-overlayfs")
    script = (
        'cd "$1"; for i in bin lib lib64 usr; do mount --bind /$i $i; done; mount --bind /proc proc; '
        "exec chroot . sh -c 'mount -i -t overlay -o lowerdir=/lower,upperdir=/upper,workdir=/work overlay /merged; "
        "echo ready; read forever'"
    )
    with elsewhere(script, root), pytest.raises(LayoutError, match=f"{worker}: lies in /upper, which an overlay at /merged"):
        check(worker)


# -- FUSE


@pytest.mark.parametrize("option", ["-o {}", "-o{}", "-o noatime,{}"])
def test_fuse_overlayfs_has_its_layers_on_its_command_line(option: str, tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "a b,c:d" / "runc-overlayfs")
    layer = str(tmp_path / "a b,c:d").replace(",", "\\,").replace(":", "\\:")
    program = tmp_path / "fuse-overlayfs"
    program.write_text("#!/bin/sh\necho ready\nread forever\n")
    program.chmod(0o755)
    words = [word.format(f"lowerdir=/nowhere:/usr,upperdir={layer},workdir=/w") for word in option.split(" ")]
    with subprocess.Popen([program, *words, "/merged"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(LayoutError, match=r"which a fuse-overlayfs at /merged \(as process \d+ sees it\) shows, too"):
                check(worker)
        finally:
            process.kill()
    check(worker)


FUSE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit("no mount namespace")
try:
    fd = os.open("/dev/fuse", os.O_RDWR)
except OSError as error:
    sys.exit(str(error))
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), b"fuse.bindfs", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
print("ready", flush=True)
sys.stdin.readline()
"""
"""A FUSE file system that never answers, in a mount namespace of its own: nobody must have to look into it."""


def test_a_fuse_file_system_that_names_what_it_shows(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "source" / "runc-overlayfs")
    (tmp_path / "shown").mkdir()
    command: list[str | Path] = [sys.executable, "-c", FUSE, tmp_path / "source", tmp_path / "shown"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if process.stdout.readline() != b"ready\n":
                missing(f"FUSE can't be mounted here: {process.stderr.read().decode().strip()}")
            with pytest.raises(
                LayoutError, match=rf"lies in {tmp_path / 'source'}, which a FUSE file system at {tmp_path / 'shown'}"
            ):
                check(worker)
        finally:
            process.kill()


# -- what is not there to be seen


async def test_a_bind_mount_has_the_same_locks_and_is_no_reason(tmp_path: Path, mount: Mount) -> None:
    worker = sample_cache().write(tmp_path / "buildkit" / "runc-overlayfs")
    shown = mount("--bind", tmp_path / "buildkit", at=tmp_path / "bound")
    with Db.open(shown / "runc-overlayfs" / "containerdmeta.db"), pytest.raises(DatabaseLockedError):
        await asyncmig.migrate(worker)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


async def test_without_proc_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")

    def fail(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(views, "_Namespace", fail)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


def test_processes_that_end_or_may_not_be_looked_at_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    monkeypatch.setattr(views, "_processes", lambda: [os.getpid(), 1, 2, 1 << 30])
    check(worker)


def test_the_look_can_be_stopped(tmp_path: Path) -> None:
    layout = find_layout(sample_cache().write(tmp_path / "runc-overlayfs"))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        check_views(stop, layout)
