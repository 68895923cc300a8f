"""The command, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from asyncmig.bolt import Db
from tests.caches import sample_cache
from tests.clock import SAFETY
from tests.states import dump_lines, tree_state


def run(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncmig", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | (env or {}),
    )


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return sample_cache().write(tmp_path / "runc-overlayfs")


def test_version() -> None:
    assert run("--version").stdout.startswith("asyncmig, version ")


def test_help_documents_the_exit_codes() -> None:
    text = run("--help").stdout
    for code in ("0 ", "1 ", "2 ", "4 ", "74 ", "130"):
        assert f"\n    {code}" in text


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_migrate(backend: str, worker: Path) -> None:
    done = run("migrate", worker, "--backend", backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"migrated {worker}\n")
    assert "6 created, 0 already existed" in done.stdout
    again = run("migrate", worker)
    assert (again.returncode, again.stdout) == (0, f"already migrated: {worker}\n")


def test_dry_run(worker: Path) -> None:
    before = tree_state(worker)
    done = run("migrate", worker, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith(f"plan: would migrate {worker}\n")
    assert "to remove from 6 snapshots, 3 blobs and 1 stale view (a stopped daemon has left the views)" in done.stdout
    assert tree_state(worker) == before


def test_nothing_to_do(worker: Path) -> None:
    (worker / "metadata.db").unlink()
    done = run("migrate", worker)
    assert (done.returncode, done.stdout) == (0, f"nothing to do: no metadata.db in {worker}\n")


def test_report(worker: Path, tmp_path: Path) -> None:
    assert run("migrate", worker, "--report", tmp_path / "r.json").returncode == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["report_version"], report["outcome"], report["semantics"]) == (3, "migrated", "hardened")
    assert report["counts"]["records"] == 8
    assert set(report["seconds"]) >= {"read", "build", "protect", "publish"}


def test_a_report_is_whole_or_not_there(worker: Path, tmp_path: Path) -> None:
    """An earlier report stays as it is until the new one is complete."""
    report = tmp_path / "r.json"
    assert run("migrate", worker, "--dry-run", "--report", report).returncode == 0
    before = report.stat().st_ino
    assert run("migrate", worker, "--report", report).returncode == 0
    assert (report.stat().st_ino != before, report.stat().st_mode & 0o777) == (True, 0o666 & ~current_umask())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "runc-overlayfs"]


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_report_of_a_failure(worker: Path, tmp_path: Path) -> None:
    (worker / "metadata.db").write_bytes(b"A" * 8192)
    done = run("migrate", worker, "--report", tmp_path / "r.json")
    assert done.returncode == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["outcome"], report["error_type"]) == ("failed", "CorruptDatabaseError")


def test_a_report_that_can_t_be_written_is_refused_before_anything_happens(worker: Path, tmp_path: Path) -> None:
    before = tree_state(worker)
    assert run("migrate", worker, "--report", tmp_path).returncode == 2
    assert tree_state(worker) == before


def test_errors_name_file_and_cause_and_exit_with_1(worker: Path) -> None:
    (worker / "metadata.db").write_bytes(b"A" * 8192)
    done = run("migrate", worker)
    assert done.returncode == 1
    assert done.stderr.startswith(f"asyncmig: {worker}/metadata.db: the database is corrupt (invalid database")
    assert "; restore metadata.db from a backup, or delete the cache\n" in done.stderr


def test_wrong_usage_exits_with_2(worker: Path) -> None:
    for args in (["migrate"], ["migrate", worker, "--semantics", "none"], ["migrate", worker, "--backend", "curio"], ["no"]):
        assert run(*args).returncode == 2


def test_a_command_that_may_have_been_meant_is_named() -> None:
    """As click does it where it has all commands, in those of its versions that do."""
    direct = click.Group("asyncmig", [click.Command("migrate"), click.Command("plan")])
    with pytest.raises(click.UsageError) as error, click.Context(direct) as context:
        direct.resolve_command(context, ["migrat"])
    done = run("migrat")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"Error: {error.value.format_message()}")


_FAIL = """
import sys
from asyncmig.cli.run import run
async def fail(): raise LookupError("gone")
run(fail, backend=sys.argv[1], on_signal=print)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_traceback_of_a_fault_tells_of_nothing_else(backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", _FAIL, backend], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("LookupError: gone\n")


def test_a_missing_trio_is_wrong_usage(worker: Path, tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("raise ImportError('not installed')")
    done = run("migrate", worker, "--backend", "trio", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "pip install 'asyncmig[trio]'" in done.stderr


def test_json_progress_is_json(worker: Path) -> None:
    done = run("migrate", worker, "--progress", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [e["stage"] for e in events if e["event"] == "stage"][:3] == ["open", "read", "resolve"]
    assert {"event": "uncancellable"} in events


def test_plain_progress_names_the_stages(worker: Path) -> None:
    assert run("migrate", worker, "--progress", "plain").stderr.splitlines()[1:4] == [
        "read: reading the records",
        "read: 8 done",
        "resolve: looking up snapshots (8)",
    ]


def test_names_from_a_cache_cannot_reach_the_terminal_raw(tmp_path: Path) -> None:
    cache = sample_cache()
    cache.records["\x1b[31mred"] = {}
    worker = cache.write(tmp_path / "runc-overlayfs")
    done = run("migrate", worker, "--semantics", "upstream")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "record \\x1b[31mred" in done.stderr
    shown = run("plan", worker)
    assert "\x1b" not in shown.stdout
    assert "\\x1b[31mred: it has no snapshot" in shown.stdout


SLOW_PROGRAM = """
import sys, threading, time
from asyncmig.cli.progress import CommandProgress
from asyncmig.migration import {module}
original = {module}.{function}
sent, noticed = threading.Event(), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), sent.set()), daemon=True).start()
real = CommandProgress.interrupted
def interrupted(self):
    real(self)
    noticed.set()
CommandProgress.interrupted = interrupted
def slow(*args, **kwargs):
    print("there", flush=True)
    checkpoint = next((a for a in args if callable(a)), lambda: None)
    while not (sent.is_set() and noticed.is_set()):
        time.sleep(0.01)
        checkpoint()
    return original(*args, **kwargs)
from asyncmig.migration import pipeline
setattr(pipeline if hasattr(pipeline, "{function}") else {module}, "{function}", slow)
from asyncmig.cli.main import main
main()
"""
"""A migration with a function that does not end before all signals are sent, and one has been noticed."""


def interrupt(
    worker: Path, module: str, function: str, backend: str, number: signal.Signals, *more: str
) -> tuple[int, str, str]:
    """Send a signal three times while ``function`` runs."""
    program = SLOW_PROGRAM.format(module=module, function=function)
    process = subprocess.Popen(
        [sys.executable, "-c", program, "migrate", str(worker), "--backend", backend, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.05)  # so that they don't become one; nothing goes wrong if they do
    out, err = process.communicate(timeout=SAFETY)
    return process.returncode, out, err


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_before_the_tail_stops_and_changes_nothing(
    backend: str, number: signal.Signals, code: int, worker: Path
) -> None:
    before = tree_state(worker)
    returned, _, err = interrupt(worker, "chains", "compute_chains", backend, number)
    assert returned == code
    assert "stopped, nothing was changed" in err
    assert tree_state(worker) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_signals_in_the_tail_get_a_message_and_the_migration_completes(
    backend: str, number: signal.Signals, worker: Path
) -> None:
    returned, out, err = interrupt(worker, "publish", "sync_directory", backend, number)
    assert returned == 0
    assert out.startswith("migrated")
    assert err.count("past the point of no return") == 1, "once is enough"
    assert dump_lines(worker / "metadata_v2.db")


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("output", [">/dev/full", "2>/dev/full", "| true; exit ${PIPESTATUS[0]}", "2>&-", ">&-"])
def test_output_that_goes_nowhere_does_not_change_the_outcome(output: str, worker: Path) -> None:
    done = shell(f"{sys.executable} -m asyncmig migrate {worker} --progress plain {output}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert (worker / "metadata_v2.db").exists()


def test_a_report_never_replaces_anything_but_a_report(worker: Path, tmp_path: Path) -> None:
    victim = tmp_path / "notes.txt"
    victim.write_text("keep me")
    done = run("migrate", worker, "--dry-run", "--report", victim)
    assert done.returncode == 2
    assert "is not a report" in done.stderr
    assert victim.read_text() == "keep me"
    for _ in range(2):
        assert run("migrate", worker, "--dry-run", "--report", tmp_path / "r.json").returncode == 0


_CACHE_FILES = (
    "metadata.db",
    "metadata_v2.db",
    "metadata_v2.db.tmp",
    "metadata_v2.db.journal",
    "metadata_v2.db.journal.tmp",
    "containerdmeta.db.before",
    "snapshots/metadata.db",
    "../cache.db",
    "../buildkitd.lock",
    "workerid",
)


@pytest.mark.parametrize("name", _CACHE_FILES)
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_report_is_never_written_where_a_cache_has_its_files(is_empty: bool, name: str, worker: Path) -> None:
    """There or not: a report must neither replace such a file nor be taken for it."""
    if is_empty:
        (worker / name).write_bytes(b"")
    refuses_report(worker, worker / name)


def test_no_link_and_no_detour_leads_a_report_to_a_file_of_the_cache(worker: Path, tmp_path: Path) -> None:
    refuses_report(worker, f"{worker}/./metadata_v2.db/")
    (worker / "metadata.db").write_bytes(b"")
    (tmp_path / "r.json").symlink_to(worker / "metadata.db")
    refuses_report(worker, tmp_path / "r.json")
    (tmp_path / "real.json").write_bytes(b"")
    (worker / "metadata_v2.db").symlink_to(tmp_path / "real.json")
    refuses_report(worker, worker / "metadata_v2.db")


def refuses_report(worker: Path, report: str | Path) -> None:
    before = tree_state(worker.parent)
    done = run("migrate", worker, "--report", report)
    assert done.returncode == 2
    assert "has the name of a file of a cache; choose another name" in done.stderr
    assert tree_state(worker.parent) == before


def test_a_report_may_have_any_other_name(worker: Path, tmp_path: Path) -> None:
    for name in ("report", "dbreport.json", "x.dbx", "workerid.json"):
        assert run("migrate", worker, "--dry-run", "--report", tmp_path / name).returncode == 0
        assert json.loads((tmp_path / name).read_text())["outcome"] == "would-migrate"


def test_an_interrupted_run_has_a_report(worker: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    interrupt(worker, "chains", "compute_chains", "asyncio", signal.SIGINT, "--report", str(report))
    assert json.loads(report.read_text())["outcome"] == "interrupted"


def test_an_empty_path_is_wrong_usage(worker: Path) -> None:
    assert run("migrate", "").returncode == 2
    done = run("migrate", worker, "--containerd-root", "")
    assert (done.returncode, "--containerd-root: it is empty" in done.stderr) == (2, True)


def test_failures_say_that_nothing_was_changed(worker: Path) -> None:
    (worker / "metadata.db").write_bytes(b"A" * 8192)
    assert run("migrate", worker).stderr.endswith("\nnothing was changed\n")


def test_check_of_a_clean_file(worker: Path) -> None:
    done = run("db", "check", worker / "metadata.db")
    assert done.returncode == 0
    assert done.stdout.startswith("clean: ")


def test_check_of_a_file_with_one_bad_meta_page(worker: Path) -> None:
    path = worker / "metadata.db"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    done = run("db", "check", path)
    assert done.returncode == 0
    assert done.stdout.startswith("note: meta page 0 is unusable (version 3 instead of 2), ")
    assert "\nclean: " in done.stdout


def test_the_help_of_check_says_what_it_knows_nothing_of() -> None:
    assert "does not notice records, snapshots or leases that make no sense" in " ".join(
        run("db", "check", "--help").stdout.split()
    )


def damage_root(path: Path) -> int:
    """Give the root page a type that there is not; returns its number."""
    with Db.open(path) as db:
        assert db.pages is not None
        root, page_size = db.pages.meta.root, db.pages.page_size
    raw = bytearray(path.read_bytes())
    raw[root * page_size + 8] = 0x55
    path.write_bytes(raw)
    return root


def test_check_of_a_damaged_file(worker: Path) -> None:
    root = damage_root(worker / "metadata.db")
    done = run("db", "check", worker / "metadata.db")
    assert done.returncode == 1
    assert f"page {root}: type 0x55" in done.stdout


def test_dump(worker: Path) -> None:
    done = run("db", "dump", worker / "metadata.db")
    assert done.stdout.splitlines() == dump_lines(worker / "metadata.db")


def test_dump_into_a_closed_pipe_is_quiet(worker: Path) -> None:
    command = f"{sys.executable} -m asyncmig db dump {worker}/containerdmeta.db | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == '{"p":["v1"],"b":true}\n'
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "output", "cause"),
    [
        ("check", ">/dev/full", "No space left on device"),
        ("dump", ">/dev/full", "No space left on device"),
        ("dump", ">&-", "it is closed"),
    ],
)
def test_a_result_that_can_t_be_written_is_an_error_of_its_own(command: str, output: str, cause: str, worker: Path) -> None:
    done = shell(f"{sys.executable} -m asyncmig db {command} {worker}/metadata.db {output}")
    assert (done.returncode, done.stderr) == (74, f"asyncmig: cannot write to standard output: {cause}\n")


@pytest.mark.parametrize("output", ["| true; exit ${PIPESTATUS[0]}", "2>&-", "2>/dev/full"])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_exit_code_of_a_check_that_nobody_reads(is_damaged: bool, output: str, worker: Path) -> None:
    path = worker / "metadata.db"
    if is_damaged:
        damage_root(path)
    done = shell(f"{sys.executable} -m asyncmig db check {path} {output}")
    assert done.returncode == int(is_damaged)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "dump"])
def test_looking_into_a_file_that_is_not_there(command: str, tmp_path: Path) -> None:
    done = run("db", command, tmp_path / "none.db")
    assert done.returncode == 1
    assert "none.db: cannot open: No such file or directory" in done.stderr


@pytest.mark.parametrize("output", ["", ">/dev/full", "| true; exit ${PIPESTATUS[0]}"])
def test_synth_tells_what_it_made_if_it_can(output: str, tmp_path: Path) -> None:
    (tmp_path / "\x1b[31mred").mkdir()
    done = shell(f"cd {tmp_path} && {sys.executable} -m asyncmig synth $'\\e[31mred' --records 0 {output}")
    assert (done.returncode, done.stderr) == (0, "")
    assert output or done.stdout == f"made {tmp_path}/\\x1b[31mred/runc-overlayfs: 0 records\n"


def test_synth_makes_a_cache_that_migrates(tmp_path: Path) -> None:
    assert run("synth", tmp_path / "root", "--records", "30", "--seed", "5").returncode == 0
    done = run("migrate", tmp_path / "root")
    assert done.returncode == 0
    assert "records:        30," in done.stdout
