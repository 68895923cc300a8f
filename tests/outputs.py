"""Runs many commands and tells what each has written: ``python -m tests.outputs``, JSON lines in and out.

A program of its own, because it forks: what the commands need is imported once.
"""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

import asyncmig.cli.db
import asyncmig.cli.migrate
import asyncmig.cli.verify
import asyncmig.runs.migrate
import asyncmig.runs.verify
import asyncmig.stores.containerd.stores  # noqa: F401
from asyncmig.cli.main import main as command


@dataclass(frozen=True, slots=True)
class Output:
    """What has become of a command; on a terminal both outputs are one."""

    arguments: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes


class Commands:
    """Runs commands one by one, their outputs files or a terminal."""

    def __enter__(self) -> Self:
        arguments = [sys.executable, "-m", "tests.outputs"]
        self._program = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._program.communicate()

    def run(self, arguments: Sequence[str], *, terminal: bool = False) -> Output:
        """Run ``asyncmig`` with these arguments."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps([terminal, arguments]).encode() + b"\n")
        self._program.stdin.flush()
        code, out, err = json.loads(self._program.stdout.readline())
        return Output(tuple(arguments), code, base64.b64decode(out), base64.b64decode(err))


def _main() -> None:
    for line in sys.stdin.buffer:
        terminal, arguments = json.loads(line)
        code, out, err = _on_terminal(arguments) if terminal else _in_files(arguments)
        print(json.dumps([code, base64.b64encode(out).decode(), base64.b64encode(err).decode()]), flush=True)


def _run(arguments: list[str]) -> None:
    sys.argv = ["asyncmig", *arguments]
    code = 99
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _in_files(arguments: list[str]) -> tuple[int, bytes, bytes]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _run(arguments)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, _all_of(out), _all_of(err)


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _on_terminal(arguments: list[str]) -> tuple[int, bytes, bytes]:
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        _run(arguments)
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:  # how Linux tells that nobody writes any longer
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), b"".join(parts), b""


if __name__ == "__main__":
    _main()
