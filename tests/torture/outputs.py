"""Caches all of whose texts are commands to a terminal: none may come out as anything but text."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from asyncmig.bolt import Db
from asyncmig.stores.offline import codec
from tests.caches import ROOT, Snapshot, V1Cache, digest, value
from tests.outputs import Commands, Output
from tests.torture.campaign import Campaign, Case

MARKUP = "[bold red]x[/]"
EVIL = f"\x1b[6n\x1b]0;owned\x07\x9b5n\r\n\t\b\x7f\0\u202e\u2066\u2028\u2029\ufeff{MARKUP}"
"""Commands to a terminal (tell me where the cursor is; set the title), in seven and eight bits; what ends or turns a line."""
NAMES = EVIL.replace("\0", "").replace("/", "|")
"""As far as a file can be named so."""
_RICHS_OWN = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[0-9]*[AK])")


def evil(name: str) -> str:
    """A name with all that at its end."""
    return f"{name}{EVIL}"


# -- caches


def sound() -> V1Cache:
    """Nothing is wrong with it but its names."""
    cache = V1Cache()
    cache.layer(evil("a"), more={EVIL: value(EVIL, EVIL), "cache.description": value(EVIL)})
    cache.layer(evil("b"), evil("a"))
    cache.records[evil("b")]["cache.description"] = value(EVIL)
    cache.index += [f"{EVIL}::{evil('a')}", f"{EVIL}::{evil('nobody')}", evil("endless")]
    cache.external = {evil("a"): {EVIL: EVIL.encode()}}
    cache.leases = {evil("lease"): [evil("a")], evil("b"): []}
    cache.view(evil("view"), evil("b"))
    cache.snapshots[evil("left")] = Snapshot(labels={ROOT: EVIL, EVIL: EVIL})
    for snapshot in cache.snapshots.values():
        snapshot.labels |= {ROOT: EVIL, EVIL: EVIL}
    for labels in cache.blobs.values():
        labels |= {ROOT: EVIL, EVIL: EVIL}
    cache.blobs[f"sha256:{EVIL}"] = {ROOT: EVIL}
    return cache


def no_utf8(cache: V1Cache) -> None:
    cache.layer(evil("raw") + "\udc9b")
    cache.leases[evil("raw") + "\udc9b"] = [evil("raw") + "\udc9b"]


def without_snapshot(cache: V1Cache) -> None:
    del cache.snapshots[evil("a")]


def without_any_snapshot(cache: V1Cache) -> None:
    cache.snapshots.clear()


def without_parent(cache: V1Cache) -> None:
    del cache.records[evil("a")]


def in_a_circle(cache: V1Cache) -> None:
    cache.snapshots[evil("a")].parent = evil("b")


def malformed(content: bytes, key: str = EVIL) -> Callable[[V1Cache], None]:
    def damage(cache: V1Cache) -> None:
        cache.records[evil("a")][key] = content

    return damage


def with_another_parent(cache: V1Cache) -> None:
    cache.records[evil("b")]["cache.parent"] = value(EVIL)


def with_a_blob(pair: object) -> Callable[[V1Cache], None]:
    return malformed(value(pair, EVIL), "blobmapping.blob")


def with_a_new_blob(cache: V1Cache) -> None:
    cache.records[evil("a")] |= {"cache.blob": value(EVIL), "cache.diffID": value(EVIL)}


def with_holders(owner: str) -> Callable[[V1Cache], None]:
    def damage(cache: V1Cache) -> None:
        cache.unfinalised(evil("holder"), evil("mutable"), evil("parent"))
        cache.records[evil("holder")]["cache.equalMutable"] = value(owner)

    return damage


def crashed(cache: V1Cache) -> None:
    cache.unfinalised(evil("holder"), evil("mutable"))
    cache.snapshots[evil("holder")] = Snapshot()


DAMAGE: dict[str, Callable[[V1Cache], None]] = {
    "none": lambda _: None,
    "no UTF-8": no_utf8,
    "without a snapshot": without_snapshot,
    "without any snapshot": without_any_snapshot,
    "without a parent": without_parent,
    "in a circle": in_a_circle,
    "malformed": malformed(EVIL.encode()),
    "malformed string": malformed(b'{"value":"' + EVIL.encode() + b'"}'),
    "malformed bytes": malformed(b"\x9b\x1b[6n"),
    "malformed parent": malformed(value({EVIL: EVIL}), "cache.parent"),
    "malformed index": malformed(json.dumps({"value": 1, "index": {EVIL: 1}}).encode()),
    "malformed owner": malformed(EVIL.encode(), "cache.equalMutable"),
    "another parent": with_another_parent,
    "blob": with_a_blob({"Blobsum": EVIL, "DiffID": EVIL}),
    "blob that looks good": with_a_blob({"Blobsum": f"sha256:{EVIL}", "DiffID": EVIL}),
    "diffID": with_a_blob({"Blobsum": digest("blob b"), "DiffID": EVIL}),
    "new blob": with_a_new_blob,
    "holder of nobody": with_holders(EVIL),
    "holder of a mutable": with_holders(evil("mutable")),
    "holder of itself": with_holders(evil("holder")),
    "crashed": crashed,
}


def bucket_in_a_record(name: bytes) -> Callable[[Path], None]:
    def damage(worker: Path) -> None:
        with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
            tx.create_path(b"_main", codec.to_bytes(evil("a")), name, b"x\x1b[6n").put(b"y", b"z")

    return damage


def bucket_in_the_index(worker: Path) -> None:
    with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"_index", EVIL.encode() + b"\x9b")


def value_among_records(worker: Path) -> None:
    with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"_main").put(b"\xff" + EVIL.encode(), EVIL.encode())


def odd_lease(worker: Path) -> None:
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"v1", b"buildkit", b"leases", codec.to_bytes(evil("b"))).put(b"snapshots", EVIL.encode())


def odd_entry(*path: bytes) -> Callable[[Path], None]:
    def damage(worker: Path) -> None:
        with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
            entry = tx.create_path(b"v1", b"buildkit", *path)
            if entry.bucket(b"labels") is not None:
                entry.delete_bucket(b"labels")
            entry.put(b"labels", EVIL.encode())

    return damage


IN_FILES: dict[str, Callable[[Path], None]] = {
    "bucket in a record": bucket_in_a_record(b"x" + EVIL.encode()),
    "bucket in a record, no UTF-8": bucket_in_a_record(b"\x9b" + EVIL.encode()),
    "bucket in the index": bucket_in_the_index,
    "value among records": value_among_records,
    "odd lease": odd_lease,
    "odd snapshot": odd_entry(b"snapshots", b"overlayfs", codec.to_bytes(evil("a"))),
    "odd blob": odd_entry(b"content", b"blob", digest(f"blob {evil('a')}").encode()),
}


# -- what may be written


def check(output: Output, *, terminal: bool = False) -> None:
    """Nothing but text, whatever it comes from; and no errors but our own."""
    assert output.code in (0, 1, 2, 3, 4), f"{output.arguments}: {output.stderr!r}"
    for raw in (output.stdout, output.stderr):
        text = raw.decode()  # raises for what is no UTF-8, and may be C1 in a terminal of eight bits
        assert "Traceback" not in text, text
        if terminal:
            text = _RICHS_OWN.sub("", text).replace("\r", "")
        bad = {char for char in text if not char.isprintable()} - {"\n"}
        assert not bad, f"{output.arguments}: {bad} in {text!r}"
        assert "\x1b" not in text
    if output.arguments[0] != "db":
        for line in (output.stdout + output.stderr).decode().splitlines():
            if line.startswith("{"):
                json.loads(line)


def check_report(path: Path) -> None:
    """What reads a report may print it: the texts that are ours are free of commands, too, as names alone are not."""
    raw = path.read_bytes()
    assert all(byte in b"\n" or 32 <= byte < 127 for byte in raw)
    report = json.loads(raw)
    texts = [report.get("error", ""), report.get("refused") or ""]
    texts += [entry["text"] for kind in ("decisions", "notes") for entry in report.get(kind, ())]
    for text in texts:
        assert text.isprintable() or set(text) <= {"\n", *filter(str.isprintable, text)}, text


# -- the campaign

CACHE_FILES = ("metadata.db", "metadata_v2.db.rolled-back", "containerdmeta.db", "snapshots/metadata.db")
OPTIONS: tuple[list[str], ...] = (
    [],
    ["--snapshotter", NAMES],
    ["--namespace", NAMES],
    ["--containerd-root", NAMES],
    ["--address", f"unix:///{NAMES}", "--timeout", "0"],
    ["--address", f"http://{NAMES}"],
    ["--layout", NAMES],
    ["--concurrency", NAMES],
    [f"--{NAMES}"],
)
JOURNALS = 27


class Outputs(Campaign):
    """Every command on every kind of trouble."""

    name = "outputs"
    unit = "commands"
    full = 1500
    few = 50

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """About so many commands, of each kind some; the seed changes nothing."""
        with Commands() as running:
            everything = list(_cases(directory, running))
            step = max(1, sum(case.weight for case in everything) // count)
            # Not every so many-th: that might be the same kind of case always.
            yield from (case for i, case in enumerate(everything) if i * 7 % step == 0)


def _cases(directory: Path, running: Commands) -> Iterator[Case]:
    for name, terminal in itertools.product((*DAMAGE, *IN_FILES), (False, True)):
        for semantics, broken in (("hardened", "repair"), ("hardened", "drop"), ("hardened", "fail"), ("upstream", "repair")):
            run = partial(_run_on_damage, running, directory, name, semantics, broken, terminal=terminal)
            yield Case(f"{name}, {semantics}, {broken}{', terminal' * terminal}", run, 20)
    for number in range(JOURNALS):
        yield Case(f"journal {number}", partial(_run_on_journal, running, directory, number), 5)
    for verb, number in itertools.product(("plan", "migrate", "verify", "rollback"), range(len(OPTIONS))):
        yield Case(f"names, {verb}, {number}", partial(_run_on_names, running, directory, verb, OPTIONS[number]), 8)
    yield Case("command line", partial(_run_command_line, running, directory), 13)
    yield Case("namespaces", partial(_run_on_namespaces, running, directory), 4)


def check_all(running: Commands, commands: list[list[str]], *, terminal: bool = False) -> list[Output]:
    """Run the commands, and look at what they write."""
    outputs = []
    for arguments in commands:
        outputs.append(running.run(arguments, terminal=terminal))
        check(outputs[-1], terminal=terminal)
    return outputs


def damaged(name: str, worker: Path, **how: Any) -> Path:
    """A cache with one kind of damage."""
    cache = sound()
    DAMAGE.get(name, DAMAGE["none"])(cache)
    cache.write(worker, **how)
    if name in IN_FILES:
        IN_FILES[name](worker)
    return worker


def _run_on_damage(running: Commands, directory: Path, name: str, semantics: str, broken: str, *, terminal: bool) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        worker = damaged(name, Path(place) / "runc-overlayfs")
        options = [str(worker), "--semantics", semantics, "--on-broken", broken]
        plain = [] if terminal else ["--progress", "plain"]
        reports = [str(Path(place) / f"report {i}") for i in range(3)]
        commands = [
            ["plan", *options, *plain],
            ["plan", *options, "--json", "--report", reports[0]],
            ["migrate", *options, "--max-dropped", "0"],
            ["migrate", *options, "--max-dropped", "100", *plain, "--report", reports[1]],
            ["migrate", *options],
            ["verify", str(worker)],
            ["verify", str(worker), "--verbose"],
            ["verify", str(worker), "--json"],
            ["rollback", str(worker), "--dry-run"],
            ["rollback", str(worker), *plain, "--report", reports[2]],
            ["rollback", str(worker)],
            ["migrate", *options, "--progress", "json"],
        ]
        commands += [["db", verb, str(worker / file)] for verb in ("check", "dump") for file in CACHE_FILES]
        commands += [["db", "repair", str(worker / file), str(Path(place) / NAMES)] for file in CACHE_FILES]
        outputs = check_all(running, commands, terminal=terminal)
        for report in reports:
            check_report(Path(report))
        if name == "none":
            seen = b"".join(output.stdout + output.stderr for output in outputs).decode()
            assert MARKUP in seen, seen
            assert r"\x1b[6n\x1b]0;owned\x07\x9b5n\r\n" in seen, seen


def _journals(good: str) -> list[str]:
    head, *rest = good.splitlines()
    texts = [EVIL, f"{head}\n{EVIL}", f'{head}\n["{EVIL}"]\n', head, "\udc9b", json.dumps([EVIL]), json.dumps({EVIL: EVIL})]
    for field in ("semantics", "namespace", "snapshotter", "v1", "v2", EVIL):
        for content in (EVIL, [EVIL, 7]):
            texts.append("\n".join([json.dumps(json.loads(head) | {field: content}), *rest, ""]))
    held = [["x" + EVIL, EVIL]]
    for line in (
        ["lease", EVIL, held],
        ["lease", EVIL, EVIL],
        ["snapshot", EVIL, EVIL],
        ["blob", EVIL, EVIL],
        ["foreign", [EVIL]],
    ):
        texts.append("\n".join([head, json.dumps(line), *rest, ""]))
    texts.append("\n".join([head, json.dumps(["snapshot", evil("a"), "x" * 5000]), *rest, ""]))
    texts.append(good.replace('\n["complete"]\n', ""))
    texts.append(good + '\n["rolling back"]\n')
    assert len(texts) == JOURNALS, len(texts)
    return texts


def _run_on_journal(running: Commands, directory: Path, number: int) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        worker = damaged("none", Path(place) / "runc-overlayfs")
        check_all(running, [["migrate", str(worker)]])
        journal = worker / "metadata_v2.db.journal"
        journal.write_bytes(_journals(journal.read_text("ascii"))[number].encode("utf-8", "surrogateescape"))
        check_all(running, [[verb, str(worker)] for verb in ("plan", "verify", "migrate", "rollback", "migrate")])


def _run_on_names(running: Commands, directory: Path, verb: str, options: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        root = Path(place) / NAMES
        worker = damaged("none", root / f"runc-{NAMES}", snapshotter=NAMES)
        garbage = damaged("none", root / "other" / "runc-overlayfs")
        for name in ("metadata.db", "containerdmeta.db"):
            (garbage / name).write_bytes(b"garbage" * 1000)
        linked, leading = (Path(shutil.copytree(worker, Path(place) / kind / worker.name)) for kind in ("linked", "leading"))
        (linked / "metadata.db").unlink()
        (linked / "metadata.db").symlink_to(f"{NAMES}/{NAMES}")
        (leading / "content").rename(Path(place) / f"content {NAMES}")
        (leading / "content").symlink_to(Path(place) / f"content {NAMES}")
        for name in ("runc-a", f"runc-{NAMES}"):
            shutil.copytree(worker, Path(place) / "two" / name)
        places = (worker, garbage, root / "nothing", linked, leading, root.parent / "two", garbage / "metadata.db", root)
        check_all(running, [[verb, str(path), *options] for path in places])


def _run_command_line(running: Commands, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        root = Path(place) / NAMES
        worker = damaged("none", root / f"runc-{NAMES}", snapshotter=NAMES)
        nowhere = root / "nowhere" / NAMES
        commands = [["plan", str(worker), "--report", str(path)] for path in (root, nowhere, worker / "metadata.db")]
        commands += [["db", verb, str(path)] for verb in ("check", "dump", NAMES) for path in (root, nowhere)]
        commands += [[NAMES], [NAMES, NAMES], ["synth", str(root), "--records", NAMES], ["synth", str(root), "--records", "1"]]
        commands += [["synth", f"{place}/new {NAMES}", "--records", "1", "--bare"], ["synth", f"{nowhere}", "--records", "1"]]
        check_all(running, commands)


def _run_on_namespaces(running: Commands, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        worker = damaged("none", Path(place) / "runc-overlayfs", snapshotter=EVIL, namespace=EVIL)
        several = damaged("none", Path(place) / "several" / "x")
        with Db.open(several / "containerdmeta.db", writable=True) as db, db.update() as tx:
            tx.create_path(b"v1", b"buildkit", b"snapshots", EVIL.encode() + b"\x9b")
        outputs = check_all(running, [[verb, str(path)] for verb in ("plan", "migrate") for path in (worker, several)])
        assert [output.code for output in outputs] == [1] * 4
        assert all(b"owned" in output.stderr for output in outputs)
