"""What is printed is written, or the exit code says that it is not; a reader that has seen enough is no error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from asyncmig.cli.main import cli
from asyncmig.cli.options import PATH
from asyncmig.synth import synthesize
from tests.caches import sample_cache
from tests.cli.test_cli import run, shell
from tests.states import tree_state

RESULTS = {
    "plan": "plan {before}",
    "plan --json": "plan {before} --json",
    "plan --report -": "plan {before} --report -",
    "migrate --dry-run": "migrate {before} --dry-run",
    "rollback --dry-run": "rollback {after} --dry-run",
    "verify": "verify {after}",
    "verify --json": "verify {after} --json",
    "db check": "db check {before}/metadata.db",
    "db dump": "db dump {before}/metadata.db",
}
"""Commands that are given for what they print."""

WORKS = {
    "migrate": "migrate {before}",
    "migrate --report -": "migrate {before} --report -",
    "rollback": "rollback {after}",
    "synth": "synth {new} --records 3",
    "db repair": "db repair {damaged} {new}",
}
"""Commands that are given for what they do."""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for more than a pipe holds: one not migrated, and one that is."""
    path = tmp_path_factory.mktemp("caches")
    for name in ("before", "after"):
        synthesize(path / name / "runc-overlayfs", records=150)
    assert run("migrate", path / "after").returncode == 0
    data = bytearray((path / "before" / "runc-overlayfs" / "metadata.db").read_bytes())
    data[20] ^= 1
    (path / "damaged.db").write_bytes(data)
    return path


def command(text: str, caches: Path, new: Path = Path("new")) -> str:
    places = {name: caches / name / "runc-overlayfs" for name in ("before", "after")}
    return f"{sys.executable} -m asyncmig " + text.format(**places, damaged=caches / "damaged.db", new=new)


@pytest.mark.parametrize(("output", "cause"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_is_lost(name: str, output: str, cause: str, caches: Path) -> None:
    done = shell(f"{command(RESULTS[name], caches)} {output}")
    assert (done.returncode, done.stderr) == (74, f"asyncmig: cannot write to standard output: {cause}\n")


@pytest.mark.parametrize("name", RESULTS)
def test_a_reader_that_has_seen_enough(name: str, caches: Path) -> None:
    done = shell(f"{command(RESULTS[name], caches)} | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_there_is_more_than_a_pipe_holds(caches: Path) -> None:
    """Otherwise the test before this one could not fail."""
    for name in ("plan --json", "db dump"):
        assert len(shell(command(RESULTS[name], caches)).stdout) > 2 * 65536


def test_a_plan_that_nobody_reads_has_its_exit_code_and_its_report(tmp_path: Path) -> None:
    """The migration would refuse to begin, and that is known although the output ends early."""
    cache = sample_cache()
    for number in range(500):
        cache.records[f"stub{number:03}{'x' * 200}"] = {}
    worker = cache.write(tmp_path / "runc-overlayfs")
    text = f"{sys.executable} -m asyncmig plan {worker} --json --report {tmp_path}/r.json"
    done = shell(f"{text} | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (1, "")
    assert "would be dropped" in json.loads((tmp_path / "r.json").read_text())["refused"]


@pytest.mark.parametrize("output", [">/dev/full", ">&-", "| true; exit ${PIPESTATUS[0]}"])
@pytest.mark.parametrize("name", WORKS)
def test_work_that_is_done_is_done(name: str, output: str, caches: Path, tmp_path: Path) -> None:
    shutil.copytree(caches, tmp_path / "copy")
    done = shell(f"{command(WORKS[name], tmp_path / 'copy', tmp_path / 'new')} {output}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    before, after = (tmp_path / "copy" / part / "runc-overlayfs" / "metadata_v2.db" for part in ("before", "after"))
    assert before.exists() is name.startswith("migrate")
    assert after.exists() is not name.startswith("rollback")
    assert (tmp_path / "new").exists() is (name in ("synth", "db repair"))


_NUMBERS = """
import os, sys
from asyncmig.cli.main import _fill_closed_streams
_fill_closed_streams()
fd = os.open(sys.argv[1], os.O_RDONLY)
sys.exit(fd)
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_standard_stream(closed: str, tmp_path: Path) -> None:
    """What is written to standard error would go into it."""
    (tmp_path / "program.py").write_text(_NUMBERS)
    (tmp_path / "file").touch()
    assert shell(f"{sys.executable} {tmp_path}/program.py {tmp_path}/file {closed}").returncode > 2


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """What is written to a pipe whose reader has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("text", ["--help", "db check --help", "--version"])
def test_a_reader_of_help_that_has_seen_enough(text: str, closed_pipe: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncmig", *text.split()], stdout=closed_pipe, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("output", ["2>/dev/full", "2>&-"])
def test_wrong_usage_that_can_t_be_told(output: str) -> None:
    done = shell(f"{sys.executable} -m asyncmig migrate {output}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_wrong_usage_that_nobody_reads(closed_pipe: int) -> None:
    done = subprocess.run([sys.executable, "-m", "asyncmig", "migrate"], stderr=closed_pipe, timeout=60, check=False)
    assert done.returncode == 2


# -- a report on standard output


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Path]:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    yield worker
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("verb", ["plan", "migrate", "migrate --dry-run"])
def test_a_report_to_standard_output_is_all_there_is_on_it(verb: str, name: str, worker: Path) -> None:
    done = run(*verb.split(), worker, "--report", name)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["outcome"] == ("migrated" if verb == "migrate" else "would-migrate")
    assert report["counts"]["records"] == 8


def test_it_may_be_redirected_to_a_file(worker: Path, tmp_path: Path) -> None:
    shell(f"{sys.executable} -m asyncmig plan {worker} --report /dev/stdout > {tmp_path}/out")
    assert json.loads((tmp_path / "out").read_text())["outcome"] == "would-migrate"


def test_a_failure_has_a_report_there_too(worker: Path) -> None:
    (worker / "metadata.db").write_bytes(b"A" * 8192)
    done = run("rollback", worker, "--report", "-")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (1, "failed")
    assert done.stderr.endswith("nothing was changed\n")


def test_one_output_is_not_for_two(worker: Path) -> None:
    done = run("plan", worker, "--json", "--report", "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json and --report - exclude each other" in done.stderr


def test_a_file_may_be_named_so(worker: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncmig", "plan", worker, "--report", "./-"], cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stdout.startswith(b"plan: would migrate")
    assert json.loads((tmp_path / "-").read_text())["outcome"] == "would-migrate"
    (tmp_path / "-").unlink()


# -- usage and failure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--semantics", "upstream", "--strip-leftovers"], "--strip-leftovers needs hardened semantics"),
        (
            ["--semantics", "upstream", "--max-dropped", "1", "--on-broken", "fail"],
            "--on-broken and --max-dropped need hardened semantics",
        ),
        (["--address", "/a", "--containerd-root", "/b"], "--address and --containerd-root exclude each other"),
        (["--layout", "oci", "--address", "/a"], "--layout and --address exclude each other"),
        (["--layout", "oci", "--containerd-root", "/a"], "--layout and --containerd-root exclude each other"),
        (["--address", ""], "--address is empty"),
        (["--snapshotter", ""], "--snapshotter is empty"),
        (["--namespace", ""], "--namespace is empty"),
        (["--namespace", "\udc80"], "--namespace is"),
        (["--report", ""], "--report: it is empty"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments: list[str], message: str, worker: Path) -> None:
    before = tree_state(worker)
    done = run("migrate", worker, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert tree_state(worker) == before


def test_more_records_than_any_cache_has(tmp_path: Path) -> None:
    for records in ("1000000000000", "-1"):
        done = run("synth", tmp_path / "new", "--records", records)
        assert done.returncode == 2
        assert f"--records is {records}; give a number from 0 to 10,000,000" in done.stderr
        assert not (tmp_path / "new").exists()


PATHS = {
    "migrate": "migrate {}",
    "plan": "plan {}",
    "verify": "verify {}",
    "rollback": "rollback {}",
    "db check": "db check {}",
    "db dump": "db dump {}",
    "db repair": "db repair {} new",
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_where_nothing_can_be_read_is_a_failure(name: str, tmp_path: Path) -> None:
    """At whatever level it fails, and the words of the command are right: 1."""
    (tmp_path / "file").write_text("x" * 10000)
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    wrong = ["none", "none/below", "file/below", "loop", "loop/below", "n" * 300]
    wrong.append("directory" if name.startswith("db") else "file")
    for path in wrong:
        done = run(*(part.format(tmp_path / path) for part in PATHS[name].split()))
        assert (done.returncode, done.stdout) == (1, ""), path
        assert path.split("/")[0] in done.stderr
        assert done.stderr.startswith("asyncmig: ")


def test_no_command_leaves_it_to_click_whether_a_path_can_be_read() -> None:
    """click has another exit code for it, and looks at the top only."""
    kinds = {id(parameter.type) for parameter in _parameters(cli) if isinstance(parameter.type, click.Path)}
    assert kinds == {id(PATH)}
    assert (PATH.exists, PATH.readable, PATH.writable) == (False, False, False)


def _parameters(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from _parameters(found)


# -- db repair


def test_repair(caches: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    done = run("db", "repair", caches / "damaged.db", new)
    assert (done.returncode, done.stderr) == (0, "")
    assert "note: meta page 0 is unusable" in done.stdout
    assert f"wrote {new}: " in done.stdout
    assert done.stdout.endswith("lost: nothing, or the last commit (see the note)\n")
    assert run("db", "check", new).stdout.startswith("clean: ")
    again = run("db", "repair", new, tmp_path / "newer")
    assert (again.returncode, again.stdout) == (0, f"nothing to repair: {new} is sound\n")
    assert not (tmp_path / "newer").exists()


def test_what_check_says_is_to_be_done(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    path = worker / "containerdmeta.db"
    page_size = 4096
    raw = bytearray(path.read_bytes())
    freelist = int.from_bytes(raw[16 + 32 : 16 + 40], "little")
    raw[freelist * page_size : freelist * page_size + 8] = bytes(8)
    path.write_bytes(raw)
    done = run("db", "check", path)
    assert done.returncode == 1
    assert f"page {freelist}: its header says page 0\n" in done.stdout
    assert f"'asyncmig db repair {path} NEW' writes a sound copy" in done.stdout
    failed = run("migrate", worker)
    assert failed.returncode == 1
    assert f"page {freelist} is corrupt (its header says page 0); " in failed.stderr
    assert run("db", "repair", path, tmp_path / "new").stdout.endswith("lost: nothing\n")
    (tmp_path / "new").rename(path)
    assert run("migrate", worker).returncode == 0
    (tmp_path / "metadata.db").write_bytes(b"A" * 8192)
    done = run("db", "check", tmp_path / "metadata.db")
    assert "\nremedy: restore metadata.db from a backup, or delete the cache\n" in done.stdout
