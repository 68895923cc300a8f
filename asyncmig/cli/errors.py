"""What ends a command besides the errors of the library."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """A signal has ended the command before it changed anything."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"{received.name}: stopped, nothing was changed")
        self.signal = received


class OutputError(Exception):
    """Standard output can't be written."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"cannot write to standard output: {cause}")
