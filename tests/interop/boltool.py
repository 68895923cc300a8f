"""The real bbolt, for tests: builds `boltool` (Go) and drives it as a program.

Names, keys and values travel as hex, so every byte string can be tried; `put` and its siblings
below write the operations of a script.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE_DIR = Path(__file__).parent / "boltool"

# Where Debian's golang-*-dev packages put their sources.
DEBIAN_GOPATH = "/usr/share/gocode"
BBOLT = "go.etcd.io/bbolt"

TIMEOUT = 120.0
BUILD_TIMEOUT = 1200.0

EXIT_OK, EXIT_NO, EXIT_UNABLE, EXIT_CRASHED = range(4)

Operation = dict[str, object]

COMMIT: Operation = {"op": "commit"}


class BoltToolError(RuntimeError):
    """boltool could not be built, or could not do what it was asked."""


@dataclass(frozen=True)
class CheckResult:
    """What bbolt thinks of a file; `output` has an error a line, or the panic's message."""

    clean: bool
    output: str
    crashed: bool


# ---- operations of a script


def put(path: Sequence[bytes], key: bytes, value: bytes) -> Operation:
    """Set a key; buckets missing on the path are created."""
    return {"op": "put", "p": _hex(path), "k": key.hex(), "v": value.hex()}


def delete(path: Sequence[bytes], key: bytes) -> Operation:
    """Delete a key; nothing happens if it, or its bucket, is not there."""
    return {"op": "del", "p": _hex(path), "k": key.hex()}


def mkbucket(path: Sequence[bytes]) -> Operation:
    """Create the bucket and the missing ones above it."""
    return {"op": "mkbucket", "p": _hex(path)}


def rmbucket(path: Sequence[bytes]) -> Operation:
    """Delete the last bucket of the path with all in it; nothing happens if it is not there."""
    return {"op": "rmbucket", "p": _hex(path)}


def sequence(path: Sequence[bytes], number: int) -> Operation:
    """Set the bucket's sequence; the bucket is created if missing."""
    return {"op": "seq", "p": _hex(path), "n": number}


def _hex(path: Sequence[bytes]) -> list[str]:
    return [name.hex() for name in path]


# ---- building


def find_go() -> str | None:
    """Return why boltool cannot be built here, or None if it can."""
    if shutil.which("go") is None:
        return "the go command is not installed"
    if not any((Path(root) / "src" / BBOLT).is_dir() for root in _gopath()):
        return f"the sources of {BBOLT} are not installed (golang-github-coreos-bbolt-dev)"
    return None


def build_boltool(target_dir: Path) -> Path:
    """Compile boltool into the folder and return the program's path."""
    return build_go_program(SOURCE_DIR, target_dir)


def build_go_program(source_dir: Path, target_dir: Path) -> Path:
    """Compile the Go program in `source_dir` into the other folder, under its own name, and return its path.

    Go's GOPATH mode takes bbolt from the installed sources, so nothing is downloaded. GOFLAGS is
    cleared because flags meant for module mode (-mod=...) are an error in this one.
    """
    program = target_dir / source_dir.name
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": os.pathsep.join(_gopath()),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    if not {"HOME", "XDG_CACHE_HOME", "GOCACHE"} & environment.keys():
        environment["GOCACHE"] = str(target_dir / "go-cache")
    result = subprocess.run(
        ["go", "build", "-o", str(program), "."],
        cwd=source_dir,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    if result.returncode != 0:
        raise BoltToolError(f"go build failed:\n{result.stdout.decode(errors='replace')}")
    return program


def _gopath() -> list[str]:
    own = os.environ.get("GOPATH", "").split(os.pathsep)
    return [DEBIAN_GOPATH, *(root for root in own if root)]


# ---- running


class BoltTool:
    """The compiled boltool. No call outlives `timeout` seconds."""

    def __init__(self, program: Path, timeout: float = TIMEOUT) -> None:
        self.program = program
        self.timeout = timeout

    def check(self, path: Path) -> CheckResult:
        """Run bbolt's check and a full walk. Raises if nobody could look (no file, locked)."""
        result = self._run("check", path)
        if result.returncode not in (EXIT_OK, EXIT_NO, EXIT_CRASHED):
            raise _failure("check", path, result)
        return CheckResult(
            clean=result.returncode == EXIT_OK,
            output=(result.stdout + result.stderr).decode(errors="replace"),
            crashed=result.returncode == EXIT_CRASHED,
        )

    @contextmanager
    def checker(self) -> Iterator[Callable[[Path], str]]:
        """A function that tells what is wrong with a file, "" if nothing is: one process for all files, a millisecond each.

        It ends with :class:`BoltToolError` on a file that bbolt crashes on.  Names must have no line break.
        """
        with subprocess.Popen(
            [str(self.program), "check-stream", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            asked, answers = process.stdin, process.stdout

            def ask(path: Path) -> str:
                asked.write(f"{path}\n")
                asked.flush()
                answer = answers.readline()
                if not answer:
                    raise BoltToolError(f"boltool check-stream ended on {path}")
                return str(json.loads(answer))

            yield ask

    def dump(self, path: Path) -> str:
        r"""Return the whole database as JSON lines.

        Split it at "\n", not with `splitlines`: a name or value may hold U+0085, which that takes
        for the end of a line.
        """
        return self._demand("dump", path).decode()

    def apply(
        self,
        path: Path,
        operations: Iterable[Operation],
        page_size: int | None = None,
        no_freelist_sync: bool = False,
        map_freelist: bool = False,
    ) -> None:
        """Run a script on the file, which is created if missing.

        What is open at the end is committed. An operation that fails rolls back its transaction,
        and keeps what was committed before.
        """
        flags: list[str] = []
        if page_size is not None:
            flags += ["-page-size", str(page_size)]
        if no_freelist_sync:
            flags.append("-no-freelist-sync")
        if map_freelist:
            flags.append("-map-freelist")
        script = "".join(json.dumps(operation) + "\n" for operation in operations)
        self._demand("apply", path, *flags, script=script.encode())

    @contextmanager
    def hold(self, path: Path, read_only: bool = False) -> Iterator[None]:
        """Have another process keep the file open, and so locked, inside the with block."""
        process = subprocess.Popen(
            self._command("hold", path, *_read_only_flag(read_only)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:  # closes the pipes last of all
            try:
                self._await_held(process, path)
                yield
            finally:
                self._release(process)

    def trylock(self, path: Path, read_only: bool = False) -> bool:
        """Tell whether bbolt gets the lock (shared if `read_only`); it is given back at once."""
        result = self._run("trylock", path, *_read_only_flag(read_only))
        if result.returncode not in (EXIT_OK, EXIT_NO):
            raise _failure("trylock", path, result)
        return result.returncode == EXIT_OK

    def _await_held(self, process: subprocess.Popen[bytes], path: Path) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        ready, _, _ = select.select([process.stdout], [], [], self.timeout)
        if not ready:
            raise BoltToolError(f"boltool hold {path}: no answer within {self.timeout} s")
        if process.stdout.readline() != b"held\n":
            message = process.stderr.read().decode(errors="replace")
            raise BoltToolError(f"boltool hold {path}: {message.strip()}")

    def _release(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _command(self, command: str, path: Path, *flags: str) -> list[str]:
        return [str(self.program), command, str(path), *flags]

    def _run(self, command: str, path: Path, *flags: str, script: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self._command(command, path, *flags),
            input=script,
            capture_output=True,
            timeout=self.timeout,
            check=False,
        )

    def _demand(self, command: str, path: Path, *flags: str, script: bytes = b"") -> bytes:
        result = self._run(command, path, *flags, script=script)
        if result.returncode != EXIT_OK:
            raise _failure(command, path, result)
        return result.stdout


def _read_only_flag(read_only: bool) -> list[str]:
    return ["-read-only"] if read_only else []


def _failure(command: str, path: Path, result: subprocess.CompletedProcess[bytes]) -> BoltToolError:
    message = result.stderr.decode(errors="replace").strip()
    return BoltToolError(f"boltool {command} {path}: exit {result.returncode}: {message}")
