"""What a caller of the entry points may choose."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

from asyncmig.errors import OptionError, StrPath, printable
from asyncmig.migration.decisions import OnBroken, OnBrokenName, Policy
from asyncmig.migration.semantics import DEFAULT, SEMANTICS, SemanticsName

LayoutName = Literal["auto", "oci", "containerd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    ``semantics``: what to write, a name of :data:`SEMANTICS`.  ``layout``: ``oci`` (the stores lie in the worker directory),
    ``containerd`` (they are in a containerd) or ``auto``.  ``snapshotter``: its name; told from the directory if ``None``.
    ``dry_run``: change nothing.  ``trust_others``: accept that files or directories of the cache belong to other users, or that
    everybody may write to them, so that others could change them meanwhile (docs/decisions/0009-trust.md).

    For hardened semantics: ``on_broken`` tells what is done about broken records, ``max_dropped`` is the percentage of all
    records that may be dropped, ``strip_leftovers`` takes v1's label from what belongs to no record, too.

    For a cache in a containerd: ``containerd_root`` is the root directory of a stopped one; otherwise it must run, and
    ``address`` is its unix socket (a path, or ``unix:///path``; ``None``: ``$CONTAINERD_ADDRESS``, or
    ``/run/containerd/containerd.sock``).  ``namespace``: containerd's (``None``: ``$CONTAINERD_NAMESPACE``, or ``buildkit``).
    ``concurrency``: calls at a time to a running containerd.  ``timeout``: seconds for which one that has gone, or does not
    answer, is waited for before the migration fails.

    Raises :class:`OptionError`, which is a :class:`ValueError` as well, for values that make no sense, or make none together.
    """

    semantics: SemanticsName = DEFAULT.name
    layout: LayoutName = "auto"
    snapshotter: str | None = None
    namespace: str | None = None
    containerd_root: StrPath | None = None
    address: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    on_broken: OnBroken | OnBrokenName = OnBroken.REPAIR
    max_dropped: float = 5.0
    strip_leftovers: bool = False
    dry_run: bool = False
    trust_others: bool = False

    def __post_init__(self) -> None:
        _check_choice("semantics", self.semantics, SEMANTICS)
        _check_choice("layout", self.layout, get_args(LayoutName))
        _check_choice("on_broken", self.on_broken, [choice.value for choice in OnBroken])
        for name in ("snapshotter", "namespace"):
            _check_name(name, getattr(self, name))
        for path in ("containerd_root", "address"):
            if getattr(self, path) is not None:
                check_path(path, getattr(self, path))
        for flag in ("strip_leftovers", "dry_run"):
            if not isinstance(getattr(self, flag), bool):
                raise OptionError(flag, f"is {_shown(getattr(self, flag))}; give True or False")
        _check_number("concurrency", self.concurrency, int, 1, MAX_CONCURRENCY, "calls at a time")
        _check_number("timeout", self.timeout, (int, float), 0, MAX_TIMEOUT, "seconds")
        _check_number("max_dropped", self.max_dropped, (int, float), 0, 100, "percent")
        self._check_together()

    def _check_together(self) -> None:
        if self.address is not None and self.containerd_root is not None:
            raise OptionError(
                ("address", "containerd_root"),
                "exclude each other: one is of a running containerd, the other of a stopped",
            )
        for name in ("address", "containerd_root"):
            if self.layout == "oci" and getattr(self, name) is not None:
                raise OptionError(("layout", name), "exclude each other: the stores of an oci worker are in no containerd")
        if not SEMANTICS[self.semantics].repairs:
            usual = Policy()
            names = tuple(n for n in ("on_broken", "max_dropped", "strip_leftovers") if getattr(self, n) != getattr(usual, n))
            if names:
                need = "needs" if len(names) == 1 else "need"
                raise OptionError(names, f"{need} hardened semantics, not {self.semantics}")

    @property
    def policy(self) -> Policy:
        """What is wanted where a cache is not as it should be."""
        return Policy(OnBroken(self.on_broken), self.max_dropped, self.strip_leftovers)


MAX_CONCURRENCY = 1024
MAX_TIMEOUT = 1e9
"""Thirty years: whoever wants to wait for ever may."""


def check_path(name: str, value: object) -> None:
    """Raise :class:`OptionError` for what can't be a path.  ``name`` is the argument."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise OptionError(name, f"is {_shown(value)}; give a path, as str or os.PathLike")
    _check_text(name, path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise OptionError(name, f"is {_shown(path)}, which can't be the name of a file") from None


def _check_name(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise OptionError(name, f"is {_shown(value)}; give a str")
    _check_text(name, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise OptionError(name, f"is {_shown(value)}, which is not UTF-8; a containerd has no such name") from None


def _check_text(name: str, text: str) -> None:
    if not text:
        raise OptionError(name, "is empty")
    if "\0" in text:
        raise OptionError(name, f"is {_shown(text)}; it must have no NUL")


def _check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise OptionError(name, f"is {_shown(value)}; choose {', '.join(choices)}")


def _check_number(name: str, value: float, kind: type | tuple[type, ...], low: float, high: float, unit: str) -> None:
    # A bool is an int to Python.  A NaN is in no range.
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        raise OptionError(name, f"is {_shown(value)}; give {unit} from {low:g} to {high:g}")


def _shown(value: object) -> str:
    return printable(repr(value))[:100]
