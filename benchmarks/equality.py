"""Are two sets of databases the same, key for key?"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from asyncmig.bolt import Db, dump
from tests.states import normalized


class DifferentError(AssertionError):
    """Two databases that should be the same are not."""


def require_equal(left: Path, right: Path, names: tuple[str, ...]) -> None:
    """Raise :class:`DifferentError` unless the databases of these names say the same, but for times."""
    for name in names:
        _compare(left / name, right / name)


def _compare(left: Path, right: Path) -> None:
    with Db.open(left) as one, Db.open(right) as other:
        for mine, yours in zip_longest(dump(one), dump(other)):
            if mine == yours:
                continue
            if mine is None or yours is None or normalized([mine]) != normalized([yours]):
                raise DifferentError(f"{left} and {right} differ:\n{mine}\n{yours}")
