"""The benchmarks run; what they say is not looked at here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from asyncmig.bolt import Db
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import Info, UpdateRequest
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    DeleteRequest,
    Resource,
)
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotRequest
from asyncmig.stores.containerd._pb.google.protobuf import FieldMask
from asyncmig.synth import synthesize
from benchmarks import baseline, cold, documents, live, live_report, loop_lag, machine, memory
from benchmarks.__main__ import SUITES
from benchmarks.baseline import BaselineError
from benchmarks.baseline.recording import as_call, in_phases
from benchmarks.caches import DATABASES, RESULTS, PreparedCache, copy_databases
from benchmarks.compare import compare
from benchmarks.documents import insert
from benchmarks.equality import DifferentError, require_equal
from benchmarks.latency import Latencies, bucket_of
from benchmarks.model import Result, Run, load
from benchmarks.suite import Settings, Suite
from tests.conftest import missing
from tests.interop.conftest import ContainerdFactory

ROOT = Path(__file__).parents[2]


def run(module: str, *args: str) -> list[str]:
    """The lines that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def need_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        missing("matplotlib is not installed (pip install '.[bench]')")


def need_go() -> None:
    reason = baseline.unavailable()
    if reason is not None:
        missing(reason)


def measure(tmp_path: Path, suite: str, *args: str) -> Run:
    """The results of one suite at a small size."""
    common = ("--suite", suite, "--repeat", "1", "--scratch", str(tmp_path), "--out", str(tmp_path / "out"))
    lines = run("benchmarks", *common, "--records", "50", *args)
    assert f"## {suite}" in lines
    (path,) = (tmp_path / "out").iterdir()
    found = load(path)
    assert found.machine["cores"] >= 1
    assert found.versions["asyncmig"]
    assert len(found.load_before) == len(found.load_after) == 3
    assert str(tmp_path) not in path.read_text()
    return found


@pytest.fixture
def without_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cp", "containerd", "ctr"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))


# -- the suites


def test_offline_with_the_baseline(tmp_path: Path) -> None:
    need_go()
    found = measure(tmp_path, "offline")
    by_case = {result.case["what"]: result for result in found.results}
    assert set(by_case) == {"hardened", "upstream", "baseline", "copy"}
    assert by_case["baseline"].marks == ["same result"]
    assert by_case["upstream"].figures["faster_than_baseline"] > 0
    assert by_case["upstream"].series["cpu_us_a_record"]["build"] > 0
    assert not found.left_out


def test_a_part_of_the_baseline_is_an_estimate(tmp_path: Path) -> None:
    need_go()
    found = measure(tmp_path, "offline", "--baseline-limit", "20")
    (base,) = [result for result in found.results if result.case["what"] == "baseline"]
    assert base.marks == ["estimated"]
    assert 4 < base.figures["commits_a_record"] < 9


def test_without_go_the_baseline_is_left_out(tmp_path: Path, without_go: None) -> None:
    found = measure(tmp_path, "offline")
    assert [result.case["what"] for result in found.results] == ["hardened", "upstream", "copy"]
    assert found.left_out == ["offline: the baseline, because the go command is not installed"]


def test_bolt(tmp_path: Path) -> None:
    (result,) = measure(tmp_path, "bolt").results
    assert result.figures["records_a_second"] > 0
    assert list(result.series["seconds"]) == ["check", "read", "change", "write", "check again"]


def test_memory(tmp_path: Path) -> None:
    results = measure(tmp_path, "memory", "--records", "50", "100").results
    assert [result.case.get("records") for result in results] == [50, 100, None] * 2
    assert all(result.figures["anonymous_mb"] > 5 for result in results)


def test_loop_lag(tmp_path: Path) -> None:
    results = measure(tmp_path, "loop_lag", "--backend", "trio").results
    assert [result.case["during"] for result in results] == ["idle", "migration"]


def test_startup(tmp_path: Path) -> None:
    results = measure(tmp_path, "startup").results
    assert [result.figures["ms"] > 0 for result in results] == [True] * 4


def test_cold(tmp_path: Path) -> None:
    reason = cold.unavailable()
    if reason is not None:
        missing(reason)
    found = measure(tmp_path, "cold")
    assert [result.case["what"] for result in found.results] == ["db check", "plan", "migrate", "verify"]
    assert all(figure > 0 for result in found.results for figure in result.figures.values())
    assert set(found.results[2].series) == {"warm", "cold"}
    assert not found.left_out


def test_without_the_right_to_drop_caches_cold_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DROP_CACHES", tmp_path)  # which can't be written either
    settings = Settings(tmp_path)
    assert not list(cold.measure(settings))
    assert settings.left_out == ["cold, because /proc/sys/vm/drop_caches can't be written, which takes root: Is a directory"]


def test_a_cold_run_is_held_against_a_warm_one_and_reading() -> None:
    figures = {"cold_seconds": 3.0, "warm_seconds": 1.5, "read_seconds": 0.75, "times_warm": 2.0, "of_allowed": 1.0}
    assert cold.figures(1.5, 3.0, 0.75) == figures
    text = cold.SUITE.table([Result("cold", {"what": "plan", "records": 1000}, figures)])
    assert text.endswith("| 1,000 | plan | 3.00 | 1.50 | 0.75 | 2.00 times | 100% |")


@pytest.mark.parametrize("args", [[], ["--live"]], ids=["offline", "live"])
def test_loop_lag_alone(args: list[str], containerd_factory: ContainerdFactory) -> None:
    lines = run("benchmarks.loop_lag", "--records", "50", *args)
    assert [line.split(" | ")[3] for line in lines[2:]] == ["idle", "migration"]


LIVE = ("--concurrency", "1", "4", "--backend", "asyncio", "--on")


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_live(tmp_path: Path, place: str, containerd_factory: ContainerdFactory, without_go: None) -> None:
    found = measure(tmp_path, "live", *LIVE, place)
    assert [result.case for result in found.results] == [
        {"on": place, "records": 50, "backend": "asyncio", "concurrency": concurrency} for concurrency in (1, 4)
    ]
    assert [sum(result.series["latency_us create"].values()) for result in found.results] == [50, 50]
    assert all(result.figures["server_busy"] > 0 and "go_seconds" not in result.figures for result in found.results)
    assert found.left_out == ["live: the client in Go, because the go command is not installed"]


def test_live_beside_the_go_client(tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    problem = baseline.unavailable("live")
    if problem is not None:
        missing(problem)
    found = measure(tmp_path, "live", *LIVE, "tmpfs")
    assert [result.figures["times_go"] > 0 for result in found.results] == [True, True]


def test_without_containerd_live_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "find_containerd", lambda: "containerd needs root")
    settings = Settings(tmp_path)
    assert not list(live.measure(settings))
    assert settings.left_out == ["live, because containerd needs root"]


def test_calls_are_replayed_in_phases_of_chains() -> None:
    """Calls for one lease stay in order; what the pipeline does one after the other is not made at a time."""
    one, two = [
        [as_call(CreateRequest(id=name)), as_call(AddResourceRequest(id=name, resource=Resource(id="r", type="content")))]
        for name in ("1", "2")
    ]
    stats = [as_call(StatSnapshotRequest(snapshotter="native", key=name)) for name in ("a", "b")]
    updates = [as_call(UpdateRequest(info=Info(digest="d"), update_mask=FieldMask(paths=["labels.x"])))] * 2
    recorded = [*stats, one[0], two[0], two[1], one[1], *updates]
    assert in_phases(recorded) == [[[stats[0]], [stats[1]]], [one, two], [[updates[0]], [updates[1]]]]


def test_a_call_that_the_go_client_does_not_know() -> None:
    with pytest.raises(BaselineError, match="does not know DeleteRequest"):
        as_call(DeleteRequest(id="x"))


def test_percentiles_of_latencies() -> None:
    counts: Counter[int] = Counter(bucket_of(microseconds / 1e6) for microseconds in [100] * 90 + [1000] * 9 + [10_000])
    latencies = Latencies.of("create", counts)
    assert latencies.calls == 100
    assert len(latencies.buckets) == 41  # two powers of ten, and the gaps between are there
    assert [latencies.percentile(percent) for percent in (50, 90, 99, 100)] == [100, 100, 1000, 10_000]


# -- the baseline


def require_same_migration(source: Path, tmp_path: Path) -> None:
    made, ours = tmp_path / "made" / source.name, tmp_path / "ours" / source.name
    for target in (made, ours):
        copy_databases(source, target, DATABASES)
    subprocess.run([baseline.program("offline"), made], check=True, stdout=subprocess.DEVNULL)
    run("asyncmig", "migrate", str(ours), "--semantics", "upstream")
    require_equal(made, ours, RESULTS)


@pytest.mark.parametrize("seed", range(3))
def test_the_baseline_makes_what_we_make(tmp_path: Path, seed: int) -> None:
    need_go()
    made = synthesize(tmp_path / "runc-overlayfs", records=120, seed=seed, bare=True)
    require_same_migration(Path(made.directory), tmp_path)


def test_the_baseline_makes_what_we_make_of_a_real_cache(tmp_path: Path, real_cache: Path) -> None:
    need_go()
    require_same_migration(real_cache / "runc-overlayfs", tmp_path)


def test_what_differs_is_noticed(tmp_path: Path) -> None:
    cache = PreparedCache.make(tmp_path, 20)
    names = ("metadata.db",)
    require_equal(cache.pristine, cache.worker, names)
    with Db.open(cache.worker / "metadata.db", writable=True) as database, database.update() as tx:
        tx.create_path(b"_main", b"zzz").put(b"key", b"value")
    with pytest.raises(DifferentError):
        require_equal(cache.pristine, cache.worker, names)


def test_a_baseline_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    need_go()
    program = baseline.program("offline")
    monkeypatch.setattr(baseline, "build_go_program", None)
    assert baseline.program("offline") == program


# -- what becomes of the results


def example(seconds: float) -> Run:
    result = Result("offline", {"what": "upstream", "records": 10}, {"seconds": seconds, "rounds": 3}, marks=["estimated"])
    return Run("bench", "2030-01-02T03:04:05+00:00", {}, {"cpu": "x"}, {"commit": "abc"}, [0.0, 0.0, 0.0], results=[result])


def test_results_are_read_back(tmp_path: Path) -> None:
    path = example(1.5).save(tmp_path)
    assert path.name == "bench-20300102T030405.json"
    assert load(path) == example(1.5)


def test_older_results_are_read(tmp_path: Path) -> None:
    path = example(1.5).save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"texts": {"live": "a table"}}))
    assert load(path) == example(1.5)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="not the results"):
        load(path)


def test_compare() -> None:
    text = compare(example(2.0), example(1.0))
    assert "| offline records=10 what=upstream | seconds | 2 | 1 | 0.50 |" in text
    assert "rounds" not in text
    assert "Not the same machine" not in text


def test_against_a_saved_run(tmp_path: Path) -> None:
    path = example(2.0).save(tmp_path / "saved")
    lines = run(
        *("benchmarks", "--suite", "bolt", "--records", "20", "--repeat", "1"),
        *("--scratch", str(tmp_path), "--out", str(tmp_path), "--against", str(path)),
    )
    assert any(line.startswith("Against bench of 2030") for line in lines)
    assert any("Not the same machine" in line for line in lines)


def test_insert(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("a\n<!-- benchmarks/bolt.py -->\nold\n<!-- /benchmarks/bolt.py -->\nb\n")
    insert(document, "bolt", r"new \1")
    assert document.read_text() == "a\n<!-- benchmarks/bolt.py -->\nnew \\1\n<!-- /benchmarks/bolt.py -->\nb\n"
    with pytest.raises(ValueError, match=r"startup\.py"):
        insert(document, "startup", "")


def test_the_documents_have_a_place_for_every_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("README", "PERFORMANCE"):
        source: Path = getattr(documents, name)
        monkeypatch.setattr(documents, name, Path(shutil.copy(source, tmp_path)))
    monkeypatch.setattr(documents, "describe", lambda run: "A machine.")
    suites = [Suite(suite.name, suite.measure, lambda results: f"table of {results[0].suite}") for suite in SUITES]
    found = example(1.0)
    found.results = [Result(suite.name, {"what": "upstream", "records": 10}, {"seconds": 1.0}) for suite in suites]
    found.results[-1] = live_result(10, 1, 1.0)
    documents.write(found, suites)
    text = documents.PERFORMANCE.read_text()
    for suite in suites:
        assert f"<!-- benchmarks/{suite.name}.py -->\nA machine.\n\ntable of {suite.name}\n<!-- /" in text
    assert "| 10 | upstream | 1.00 |" in documents.README.read_text()
    assert "| disk | 10 | asyncio | 1 | 1.0 |" in documents.README.read_text()


def live_result(records: int, concurrency: int, seconds: float, backend: str = "asyncio", on: str = "disk") -> Result:
    figures = {"seconds": seconds, "times_go": 1.25, "records_a_second": records / seconds, "server_busy": 0.8}
    counts = {bucket_of(microseconds / 1e6): 60 * concurrency for microseconds in (1_000, 10_000)}
    series = live_report.series([Latencies.of("create", counts), Latencies.of("version", {bucket_of(0.001): 1})])
    return Result("live", {"on": on, "records": records, "backend": backend, "concurrency": concurrency}, figures, series)


def test_tables_of_live_migrations() -> None:
    results = [live_result(100, 1, 0.5), live_result(1_000, 1, 4), live_result(1_000, 16, 2), live_result(1_000, 16, 2, "trio")]
    text = live.SUITE.table(results)
    assert "| disk | 1,000 | asyncio | 16 | 2.0 | 2.00 times | 1.25 times | 500 |  |  |  | 80% |  |" in text
    assert "| disk | 1,000 | trio | 16 | 2.0 |  | 1.25 times |" in text  # nothing to compare with
    assert "| disk | 1,000 | asyncio | 16 | create | 1,920 | 1,000 | 10,000 | 10,000 |" in text
    gist = live_report.gist(results).splitlines()
    assert [row.split(" | ")[1:4] for row in gist[2:]] == [["1,000", "asyncio", "1"], ["1,000", "asyncio", "16"]]
    assert "| trio |" in live_report.gist(results[3:])


def test_the_plot_of_live_migrations(tmp_path: Path) -> None:
    need_matplotlib()
    plot = live.SUITE.plot
    assert plot is not None
    others = [live_result(10, 32, 1), live_result(1_000, 16, 1, "trio"), live_result(1_000, 16, 1, on="tmpfs")]
    (path,) = plot([*others, live_result(1_000, 16, 1), live_result(1_000, 1, 1)], tmp_path)
    drawn = path.read_text()
    assert "calls by time: 1,000 records, on disk, asyncio, 16 at a time" in drawn
    assert ">create<" in drawn
    assert ">version<" not in drawn
    assert not plot([], tmp_path)


def test_fit() -> None:
    assert memory.fit([(0, 20), (10, 40), (20, 60)]) == (2, 20)


def test_percentiles_and_histogram() -> None:
    lags = [i / 1e6 for i in range(1000)]
    figures = loop_lag.percentiles(lags)
    assert (figures["p50_ms"], figures["max_ms"], figures["turns"]) == pytest.approx((0.5, 0.999, 1000))
    counts = loop_lag.histogram([0.00005, 0.00015, 10.0])
    assert (counts["0.1"], counts["0.2"], sum(counts.values())) == (1, 1, 3)


def test_plots_are_the_same_each_time(tmp_path: Path) -> None:
    need_matplotlib()
    from benchmarks import plots  # noqa: PLC0415  (needs matplotlib)

    def draw(directory: Path) -> list[bytes]:
        made = [
            plots.against_size(directory / "size.svg", "records a second", {"upstream": [(10, 2), (1, 1)]}),
            plots.stages(directory / "stages.svg", "seconds", {"upstream": {"read": 1, "build": 2}, "hardened": {"read": 3}}),
            plots.latency_histogram(directory / "latency.svg", "calls", {"create": {1.0: 3, 2.0: 0, 4.0: 1}}),
        ]
        return [path.read_bytes() for path in made]

    first = draw(tmp_path / "a")
    assert first == draw(tmp_path / "b")
    assert all(content.startswith(b"<?xml") and len(content) < 40_000 for content in first)
