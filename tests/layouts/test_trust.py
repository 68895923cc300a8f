"""Links, pipes, other people's files: what a careful root does not touch, and that it says so and changes nothing."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig import Options, Outcome, UntrustedError
from asyncmig.bolt import Db
from asyncmig.errors import DatabaseError, LayoutError
from asyncmig.layouts.containerd import ContainerdLayout
from asyncmig.layouts.detect import find_layout
from asyncmig.layouts.trust import check_owners
from asyncmig.migration.journal import JournalFile, fingerprint
from asyncmig.migration.publish import NewDatabase
from tests.caches import sample_cache
from tests.clock import SAFETY
from tests.conftest import copy_tree, missing
from tests.states import tree_state

pytestmark = pytest.mark.anyio

SOMEBODY = 54321
FILES = ("metadata.db", "metadata_v2.db", "metadata_v2.db.journal", "containerdmeta.db", "snapshots/metadata.db")
EDITED = ("containerdmeta.db", "snapshots/metadata.db")
DIRECTORIES = (".", "snapshots")
VERBS = ("migrate", "plan", "verify", "rollback")


Fresh = Callable[[str], Path]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each verb a cache that it would work on."""
    v1 = sample_cache().write(tmp_path_factory.mktemp("v1") / "runc-overlayfs")
    v2 = copy_tree(v1, tmp_path_factory.mktemp("v2") / "runc-overlayfs")
    anyio.run(asyncmig.migrate, v2)
    return {"migrate": v1, "plan": v1, "verify": v2, "rollback": v2}


@pytest.fixture
def fresh(begun: dict[str, Path], tmp_path: Path) -> Fresh:
    """Makes a cache for a verb, in place of the last one: so many are not to be written and synced one by one."""

    def make(verb: str) -> Path:
        for entry in tmp_path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (tmp_path / "buildkit").mkdir(mode=0o755)
        return Path(shutil.copytree(begun[verb], tmp_path / "buildkit" / "runc-overlayfs"))

    return make


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return sample_cache().write(tmp_path / "buildkit" / "runc-overlayfs")


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        missing("only root can give files away")


def everything(directory: Path) -> dict[str, object]:
    """All entries with owner, mode and kind; content of the files, targets of the links."""
    entries: dict[str, object] = dict(tree_state(directory))
    for path in directory.rglob("*"):
        status = path.lstat()
        target = os.readlink(path) if path.is_symlink() else ""
        entries[f"{path} itself"] = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino, target)
    return entries


def place(worker: Path, name: str) -> Path:
    return Path(os.path.normpath(worker / name))


def links_and_leftovers(worker: Path) -> list[Path]:
    return [path for path in worker.rglob("*") if path.is_symlink() or path.suffix == ".tmp"]


def shell(line: str) -> None:
    subprocess.run(["sh", "-c", line], check=True)


async def call(verb: str, path: Path) -> object:
    return await getattr(asyncmig, verb)(path)


async def refuses(verb: str, path: Path, *words: str, inside: Path) -> None:
    """The verb must fail with all the words, and leave all as it was."""
    before = everything(inside)
    with pytest.raises(UntrustedError) as caught:
        await call(verb, path)
    for word in words:
        assert word in str(caught.value)
    assert everything(inside) == before


# -- links


@pytest.mark.parametrize("verb", VERBS)
async def test_a_link_in_place_of_a_file_is_refused(verb: str, fresh: Fresh, tmp_path: Path) -> None:
    for name, where in itertools.product(FILES, ("outside", "inside", "nowhere", "itself")):
        worker = fresh(verb)
        target = {"outside": tmp_path / "elsewhere", "inside": worker / "elsewhere", "itself": worker / name}.get(where)
        if (worker / name).exists() and where != "itself":
            (worker / name).rename(target or tmp_path / "gone")
        (worker / name).unlink(missing_ok=True)
        (worker / name).symlink_to(target or "nowhere")
        words = (f"{worker / name}: a symbolic link to {target or 'nowhere'};", "put the file itself")
        await refuses(verb, worker, *words, inside=tmp_path)


@pytest.mark.parametrize("verb", VERBS)
async def test_no_directory_leads_out_of_the_cache(verb: str, fresh: Fresh, tmp_path: Path) -> None:
    for name in ("snapshots", "content", "content/blobs", "content/blobs/sha256", "snapshots/snapshotter"):
        worker = fresh(verb)
        if name == "snapshots/snapshotter":
            (tmp_path / "elsewhere").mkdir()
            (worker / "snapshots" / "metadata.db").rename(tmp_path / "elsewhere" / "metadata.db")
        else:
            (worker / name).rename(tmp_path / "elsewhere")
        (worker / name).symlink_to("../" * (name.count("/") + 2) + "elsewhere")
        words = (f"{worker / name}: a symbolic link to ../..", f"not in {worker};", "mount --bind")
        await refuses(verb, worker, *words, inside=tmp_path)


async def test_a_link_between_directories_of_the_cache_is_followed(worker: Path) -> None:
    (worker / "snapshots").rename(worker / "moved")
    (worker / "snapshots").symlink_to("moved")
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    assert (await asyncmig.verify(worker)).clean
    assert (await asyncmig.rollback(worker)).outcome is Outcome.ROLLED_BACK
    assert (worker / "snapshots").is_symlink()


async def test_a_link_that_goes_out_and_in_again_is_inside(worker: Path, tmp_path: Path) -> None:
    (worker / "snapshots").rename(worker / "moved")
    (tmp_path / "detour").symlink_to(worker)
    (worker / "snapshots").symlink_to(tmp_path / "detour" / "moved")
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


async def test_a_name_that_only_begins_alike_is_outside(worker: Path, tmp_path: Path) -> None:
    (worker / "snapshots").rename(f"{worker}-2")
    (worker / "snapshots").symlink_to(f"{worker}-2")
    await refuses("migrate", worker, f"{worker / 'snapshots'}: a symbolic link", inside=tmp_path)


@pytest.mark.parametrize("verb", ["migrate", "rollback"])
async def test_the_directory_given_may_be_a_link(verb: str, worker: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(worker)
    await asyncmig.migrate(tmp_path / "link")
    if verb == "rollback":
        assert (await asyncmig.rollback(tmp_path / "link")).outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize("name", ["metadata_v2.db.tmp", "metadata_v2.db.journal.tmp"])
async def test_a_link_in_place_of_a_temporary_file_is_removed_and_not_followed(name: str, worker: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    (worker / name).symlink_to(victim)
    await asyncmig.migrate(worker)
    assert victim.read_text() == "keep me"
    assert not links_and_leftovers(worker)


def in_containerd(tmp_path: Path) -> tuple[Path, Path]:
    """A worker directory whose stores are in the files of a containerd."""
    made = sample_cache().write(tmp_path / "made")
    worker, root = tmp_path / "buildkit" / "containerd-overlayfs", tmp_path / "containerd"
    worker.mkdir(parents=True)
    (made / "metadata.db").rename(worker / "metadata.db")
    (root / "io.containerd.metadata.v1.bolt").mkdir(parents=True)
    (made / "containerdmeta.db").rename(root / "io.containerd.metadata.v1.bolt" / "meta.db")
    (made / "snapshots").rename(root / "io.containerd.snapshotter.v1.overlayfs")
    (made / "content").rename(root / "io.containerd.content.v1.content")
    return worker, root


@pytest.mark.parametrize("plugin", ["metadata.v1.bolt", "snapshotter.v1.overlayfs", "content.v1.content"])
@pytest.mark.parametrize("dry_run", [True, False])
async def test_no_plugin_leads_out_of_the_root_of_a_containerd(plugin: str, dry_run: bool, tmp_path: Path) -> None:
    worker, root = in_containerd(tmp_path)
    directory = root / f"io.containerd.{plugin}"
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)
    with pytest.raises(UntrustedError, match=rf"{directory}: a symbolic link to .*elsewhere, which is not in {root};"):
        await asyncmig.migrate(worker, Options(containerd_root=root, dry_run=dry_run))
    assert everything(tmp_path) == before


async def test_the_root_of_a_containerd_may_be_a_link(tmp_path: Path) -> None:
    worker, root = in_containerd(tmp_path)
    (tmp_path / "link").symlink_to(root)
    report = await asyncmig.migrate(worker, Options(containerd_root=tmp_path / "link"))
    assert report.outcome is Outcome.MIGRATED
    assert all(path.startswith(f"{root}/") for path in report.edited)


async def test_the_snapshotter_that_is_found_out_late_is_looked_at_too(tmp_path: Path) -> None:
    worker, root = in_containerd(tmp_path)
    worker = worker.rename(tmp_path / "buildkit" / "cache")
    directory = root / "io.containerd.snapshotter.v1.overlayfs"
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)
    with pytest.raises(UntrustedError, match=f"{directory}: a symbolic link to"):
        await asyncmig.migrate(worker, Options(containerd_root=root))
    assert everything(tmp_path) == before


def test_a_database_that_becomes_a_link_in_the_last_moment_is_not_opened(worker: Path) -> None:
    (worker / "link.db").symlink_to(worker / "metadata.db")
    with pytest.raises(DatabaseError, match=r"link\.db: cannot open: Too many levels of symbolic links"):
        Db.open(worker / "link.db", follow=False)
    Db.open(worker / "link.db").close()  # which the user has named
    with pytest.raises(DatabaseError, match="cannot read: Too many levels"):
        fingerprint(str(worker / "link.db"))
    (worker / "metadata_v2.db.journal").symlink_to(worker / "link.db")
    with pytest.raises(DatabaseError, match="cannot read: Too many levels"):
        JournalFile(str(worker / "metadata_v2.db")).read()


# -- pipes, sockets, devices, directories


def as_directory(path: Path) -> None:
    path.mkdir()
    (path / "something").touch()


def as_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket may have 108 bytes only
        server.bind(path.name)
        os.chdir(here)


def as_device(path: Path) -> None:
    if os.geteuid() != 0:
        missing("only root can make devices")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))  # null


MAKE: dict[str, Callable[[Path], None]] = {
    "a directory": as_directory,
    "a FIFO": lambda path: os.mkfifo(path, 0o600),
    "a socket": as_socket,
    "a device": as_device,
}


@pytest.mark.parametrize("verb", VERBS)
async def test_what_is_no_file_is_never_waited_for(verb: str, fresh: Fresh, tmp_path: Path) -> None:
    for name, (kind, make) in itertools.product((*FILES, "../buildkitd.lock"), MAKE.items()):
        worker = fresh(verb)
        path = place(worker, name)
        path.unlink(missing_ok=True)
        make(path)
        await refuses(verb, worker, f"{path}: not a regular file but {kind}; move it away", inside=tmp_path)


@pytest.mark.parametrize("name", ["metadata_v2.db.tmp", "metadata_v2.db.journal.tmp"])
async def test_a_directory_in_place_of_a_temporary_file(name: str, worker: Path, tmp_path: Path) -> None:
    as_directory(worker / name)
    await refuses("migrate", worker, f"{worker / name}: a directory, but asyncmig has to write a file there", inside=tmp_path)


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
async def test_other_things_in_place_of_a_temporary_file_are_removed(kind: str, worker: Path) -> None:
    for name in ("metadata_v2.db.tmp", "metadata_v2.db.journal.tmp"):
        MAKE[kind](worker / name)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    assert not links_and_leftovers(worker)


@pytest.mark.parametrize("name", ["snapshots", "content"])
async def test_a_file_in_place_of_a_directory(name: str, worker: Path, tmp_path: Path) -> None:
    shutil.rmtree(worker / name)
    (worker / name).touch()
    await refuses("migrate", worker, f"{worker / name}: not a directory", inside=tmp_path)


def test_a_pipe_that_takes_the_place_of_a_file_in_the_last_moment_is_not_waited_for(worker: Path) -> None:
    os.mkfifo(worker / "metadata_v2.db.journal")
    with pytest.raises(DatabaseError, match="not a regular file"):
        JournalFile(str(worker / "metadata_v2.db")).read()
    with pytest.raises(DatabaseError, match="not a regular file"):
        fingerprint(str(worker / "metadata_v2.db.journal"))
    with pytest.raises(DatabaseError, match="cannot write"):
        JournalFile(str(worker / "metadata_v2.db")).note_complete()


# -- names


@pytest.mark.parametrize("name", EDITED)
async def test_a_database_that_a_backup_shares_is_not_edited(name: str, worker: Path, tmp_path: Path) -> None:
    os.link(worker / name, tmp_path / "backup.db")
    path = worker / name
    remedy = f"cp -p {path} {path}.own && mv {path}.own {path}"
    await refuses("migrate", worker, f"{path}: has 2 names (hard links)", remedy, inside=tmp_path)
    report = await asyncmig.plan(worker)
    assert f"{path}: has 2 names" in report.refused
    backup = (tmp_path / "backup.db").read_bytes()
    shell(remedy)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    assert (tmp_path / "backup.db").read_bytes() == backup


@pytest.mark.parametrize("name", [*EDITED, "metadata_v2.db.journal"])
async def test_a_rollback_leaves_the_files_of_a_backup_alone(name: str, worker: Path, tmp_path: Path) -> None:
    await asyncmig.migrate(worker)
    os.link(worker / name, tmp_path / "backup")
    await refuses("rollback", worker, f"{worker / name}: has 2 names", inside=tmp_path)
    assert (await asyncmig.verify(worker)).clean


async def test_what_is_only_read_or_renamed_may_have_several_names(worker: Path, tmp_path: Path) -> None:
    os.link(worker / "metadata.db", tmp_path / "backup-v1.db")
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    os.link(worker / "metadata_v2.db", tmp_path / "backup-v2.db")
    before = (tmp_path / "backup-v2.db").read_bytes()
    assert (await asyncmig.rollback(worker)).outcome is Outcome.ROLLED_BACK
    assert (tmp_path / "backup-v2.db").read_bytes() == before


# -- owners and modes


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("verb", ["migrate", "rollback"])
async def test_somebody_else_s_files_are_not_touched(verb: str, fresh: Fresh, tmp_path: Path) -> None:
    for name in (*FILES, *DIRECTORIES):
        worker = fresh(verb)
        path = place(worker, name)
        if not path.exists():  # a new database would end the matter; a journal is what an interrupted migration has left
            continue
        os.chown(path, SOMEBODY, -1)
        words = (
            f"{path}: belongs to uid {SOMEBODY}, and this is uid 0",
            f"asyncmig can't run as uid {SOMEBODY}, who has no access to",  # what pytest makes only root can enter
            f"run 'chown 0 {path}'",
            "--trust-others",
        )
        await refuses(verb, worker, *words, inside=tmp_path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", FILES)
async def test_nor_to_complete_what_was_interrupted(name: str, fresh: Fresh, tmp_path: Path) -> None:
    worker = fresh("rollback")
    journal = worker / "metadata_v2.db.journal"
    journal.write_text(journal.read_text().replace('\n["complete"]\n', ""))
    os.chown(worker / name, SOMEBODY, -1)
    await refuses("migrate", worker, f"{worker / name}: belongs to uid {SOMEBODY}", inside=tmp_path)


@pytest.mark.usefixtures("as_root")
async def test_reading_does_not_ask_whose_it_is(worker: Path) -> None:
    await asyncmig.migrate(worker)
    for name in (*FILES, *DIRECTORIES):
        os.chown(worker / name, SOMEBODY, -1)
    assert (await asyncmig.verify(worker)).clean
    assert (await asyncmig.migrate(worker)).outcome is Outcome.ALREADY_MIGRATED
    (worker / "metadata_v2.db").unlink()
    assert "belongs to uid" in (await asyncmig.plan(worker)).refused


@pytest.mark.parametrize("verb", ["migrate", "rollback"])
async def test_what_everybody_may_write_to_is_refused(verb: str, fresh: Fresh, tmp_path: Path) -> None:
    for name, sticky in itertools.product((*DIRECTORIES, "metadata.db", *EDITED, ".."), (0, 0o1000)):
        worker = fresh(verb)
        path = place(worker, name)
        path.chmod(0o777 | sticky if path.is_dir() else 0o666)
        if name == ".." and sticky:
            assert await call(verb, worker)  # as in /tmp, where nobody can move what is another's
        else:
            remedy = f"run 'chmod {'+t' if name == '..' else 'o-w'} {path}'"
            await refuses(verb, worker, f"{path}: everybody may write to it", remedy, inside=tmp_path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("verb", ["migrate", "rollback"])
async def test_a_directory_above_that_is_somebody_else_s(verb: str, worker: Path, tmp_path: Path) -> None:
    if verb == "rollback":
        await asyncmig.migrate(worker)
    os.chown(worker.parent, SOMEBODY, -1)
    await refuses(verb, worker, f"{worker.parent}: belongs to uid {SOMEBODY}, who could replace {worker}", inside=tmp_path)


@pytest.mark.usefixtures("as_root")
async def test_the_content_of_real_caches_is_everybody_s_and_only_read(worker: Path) -> None:
    """BuildKit v0.6 makes the directory with mode 0777."""
    (worker / "content").chmod(0o777)
    os.chown(worker / "content", SOMEBODY, -1)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


async def test_a_running_containerd_sees_to_its_own_files(worker: Path) -> None:
    for name in (*EDITED, "snapshots"):
        (worker / name).chmod(0o777)
    layout = find_layout(worker)
    with pytest.raises(UntrustedError):
        check_owners(layout)
    check_owners(ContainerdLayout(directory=layout.directory, namespace="buildkit", address="/run/containerd/containerd.sock"))


@pytest.mark.usefixtures("as_root")
def test_a_user_migrates_his_own_cache() -> None:
    """Rootless BuildKit: root is told to run it as that user, and that user can."""
    with tempfile.TemporaryDirectory() as place:  # not pytest's, which only root can enter
        Path(place).chmod(0o755)
        _migrate_as_user(Path(place))


def _migrate_as_user(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "home" / "runc-overlayfs")
    for path in (worker.parent, worker, *worker.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    assert command("migrate", worker).returncode == 1
    # What it needs is loaded before it gives up its permissions: Python may lie where only root can read.
    other = sample_cache().write(tmp_path / "other" / "runc-overlayfs")
    code = (
        f"import anyio, asyncmig, os; anyio.run(asyncmig.migrate, {str(other)!r})\n"
        f"os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY})\n"
        f"print(anyio.run(asyncmig.migrate, {str(worker)!r}).outcome)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "migrated", done.stderr
    assert (worker / "metadata_v2.db").stat().st_uid == SOMEBODY


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("verb", ["migrate", "rollback"])
async def test_who_accepts_the_risk_may_go_on(verb: str, fresh: Fresh, tmp_path: Path) -> None:
    worker = fresh(verb)
    for path in (worker.parent, worker, *worker.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    worker.chmod(0o777)
    assert "--trust-others" in (await asyncmig.plan(worker)).refused or verb == "rollback"
    with pytest.raises(UntrustedError, match="--trust-others"):
        await call(verb, worker)
    os.link(worker / "containerdmeta.db", tmp_path / "backup")
    with pytest.raises(UntrustedError, match="has 2 names"):
        await getattr(asyncmig, verb)(worker, Options(trust_others=True))
    (tmp_path / "backup").unlink()
    report = await getattr(asyncmig, verb)(worker, Options(trust_others=True))
    assert report.outcome in (Outcome.MIGRATED, Outcome.ROLLED_BACK)


@pytest.mark.usefixtures("as_root")
def test_root_is_told_a_command_that_works() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        worker = sample_cache().write(place / "home" / "runc-overlayfs")
        for path in (worker.parent, worker, *worker.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
        layout = find_layout(worker)
        expected = f"with 'setpriv --reuid={SOMEBODY} --regid={SOMEBODY} --clear-groups' before the command"
        with pytest.raises(UntrustedError, match=expected):
            check_owners(layout)
        for barrier, mode in ((place, 0o700), (worker, 0o500), (worker / "containerdmeta.db", 0o400)):
            before = barrier.stat().st_mode & 0o7777
            barrier.chmod(mode)
            with pytest.raises(UntrustedError, match=f"uid {SOMEBODY}, who has no access to {barrier}\\)"):
                check_owners(layout)
            barrier.chmod(before)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("name", "remedy"),
    [("..", "let root run 'chmod +t {path}'"), (".", f"let root run 'chown {SOMEBODY} {{path}} && chmod o-w {{path}}'")],
)
def test_a_user_is_told_what_only_root_can_do(name: str, remedy: str, worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (worker, *worker.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    path = place(worker, name)
    os.chown(path, 0, 0)
    path.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with pytest.raises(UntrustedError) as caught:
        check_owners(find_layout(worker))
    assert remedy.format(path=path) in str(caught.value)
    assert "--trust-others" in str(caught.value)
    assert "run 'chmod o-w" not in str(caught.value)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "name", ["metadata.db", "containerdmeta.db", "snapshots", "content/blobs/sha256", ".", "../buildkitd.lock"]
)
def test_who_may_not_look_is_told_who_may(name: str) -> None:
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        worker = sample_cache().write(Path(top) / "home" / "runc-overlayfs")
        (worker.parent / "buildkitd.lock").touch()
        for path in (worker.parent, worker, *worker.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
        denied = place(worker, name)
        os.chown(denied, 0, 0)
        denied.chmod(0o700 if denied.is_dir() else 0o600)
        other = sample_cache().write(Path(top) / "other" / "runc-overlayfs")
        code = (
            f"import anyio, asyncmig, os; anyio.run(asyncmig.migrate, {str(other)!r})\n"
            f"os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY})\n"
            f"anyio.run(asyncmig.migrate, {str(worker)!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SAFETY, check=False)
        remedy = "Permission denied; run asyncmig as root, or as the user whose daemon made the cache"
        assert remedy in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400])
async def test_new_files_have_owner_and_mode_of_what_they_replace(mode: int, worker: Path) -> None:
    if os.geteuid() == 0:
        os.chown(worker / "metadata.db", -1, SOMEBODY)
    (worker / "metadata.db").chmod(mode)
    mask = os.umask(0)
    try:
        await asyncmig.migrate(worker)
    finally:
        os.umask(mask)
    old, new = (worker / "metadata.db").stat(), (worker / "metadata_v2.db").stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    assert (worker / "metadata_v2.db.journal").stat().st_mode & 0o7777 == 0o600


@pytest.mark.usefixtures("as_root")
def test_the_owner_is_taken_over_too(tmp_path: Path) -> None:
    model = tmp_path / "metadata.db"
    model.touch(0o4750)
    os.chown(model, SOMEBODY, SOMEBODY + 1)
    model.chmod(0o4750)
    new = NewDatabase.create(str(tmp_path / "metadata_v2.db"), like=str(model))
    status = os.fstat(new.fd)
    new.close()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (SOMEBODY, SOMEBODY + 1, 0o750)


# -- the command


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that hangs is killed, and the test fails."""
    arguments = [sys.executable, "-m", "asyncmig", *map(str, args)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=SAFETY, check=False)


def test_the_command_says_so_and_that_nothing_was_changed(worker: Path, tmp_path: Path) -> None:
    (worker / "metadata_v2.db.journal").symlink_to(tmp_path / "nowhere")
    for verb in ("migrate", "rollback", "plan", "verify"):
        done = command(verb, worker)
        assert done.returncode == 1
        assert re.match(r"asyncmig: .*metadata_v2\.db\.journal: a symbolic link to .*/nowhere; ", done.stderr)
    (worker / "metadata_v2.db.journal").unlink()
    worker.chmod(0o777)
    done = command("migrate", worker)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("nothing was changed\n")
    assert command("plan", worker).returncode == 1


@pytest.mark.parametrize("verb", ["check", "dump"])
def test_looking_into_what_is_no_file(verb: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.db")
    done = command("db", verb, tmp_path / "x.db")
    assert (done.returncode, done.stderr) == (1, f"asyncmig: {tmp_path / 'x.db'}: not a regular file\n")


def test_a_report_goes_through_no_link(worker: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").touch()
    (tmp_path / "report.json").symlink_to(tmp_path / "victim")
    done = command("plan", worker, "--report", tmp_path / "report.json")
    assert done.returncode == 2
    assert "is a link; name the file itself" in done.stderr
    assert (tmp_path / "victim").read_bytes() == b""


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_report_whose_place_is_taken_meanwhile(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from asyncmig.cli.reports import write_report  # noqa: PLC0415

    path = tmp_path / "report.json"
    if kind == "link":
        (tmp_path / "victim").write_text("keep me")
        path.symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(path)
    write_report(str(path), {})
    assert "warning: cannot write the report" in capsys.readouterr().err
    assert kind == "FIFO" or (tmp_path / "victim").read_text() == "keep me"


async def test_an_empty_root_of_links_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "runc-overlayfs").symlink_to("runc-overlayfs")
    with pytest.raises(LayoutError):
        await asyncmig.migrate(tmp_path / "root")


async def test_nothing_of_this_is_in_the_way_of_an_ordinary_cache(tmp_path: Path) -> None:
    for mode in (0o700, 0o750, 0o755, 0o775):
        worker = sample_cache().write(tmp_path / f"{mode:o}" / "runc-overlayfs")
        worker.chmod(mode)
        (worker / "containerdmeta.db").chmod(0o644)
        assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
        assert (await asyncmig.rollback(worker)).outcome is Outcome.ROLLED_BACK
