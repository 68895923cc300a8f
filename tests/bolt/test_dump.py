"""A database as JSON lines."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from asyncmig.bolt import Db, dump
from asyncmig.errors import BucketError, CorruptDatabaseError
from tests.bolt.helpers import Model, apply_to_tx, model_lines, new_db, random_history, updating
from tests.bolt.test_check import damage_key


def lines(path: Path) -> list[str]:
    with Db.open(path) as db:
        return list(dump(db))


def test_form(tmp_path: Path) -> None:
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        tx.create_path(b"b", b"inner").put(b"k", b"v")
        tx.create_path(b"b").put(b"nothing", b"")
        tx.create_path(b"b").set_sequence(7)
        tx.create_path(b"a")
    assert lines(path) == [
        '{"p":["a"],"b":true}',
        '{"p":["b"],"b":true,"seq":7}',
        '{"p":["b","inner"],"b":true}',
        '{"p":["b","inner"],"k":"k","v":"v"}',
        '{"p":["b"],"k":"nothing","v":""}',
    ]


@pytest.mark.parametrize(
    ("raw", "name", "value"),
    [
        (b'<&>"\\/', r'"<&>\"\\/"', r'"v":"<&>\"\\/"'),
        ("é😀".encode(), '"é😀"', '"v":"é😀"'),
        ("\u0085\u202e\U000e0001".encode(), r'"\u0085\u202e\udb40\udc01"', r'"v":"\u0085\u202e\udb40\udc01"'),
        ("\u2028\u2029".encode(), r'"\u2028\u2029"', r'"v":"\u2028\u2029"'),
        (b"a\nb", '"hex:610a62"', '"vx":"610a62"'),
        (b"\x7f", '"hex:7f"', '"vx":"7f"'),
        (b"\xff\xfe", '"hex:fffe"', '"vx":"fffe"'),
        (b"\xed\xa0\x80", '"hex:eda080"', '"vx":"eda080"'),
    ],
)
def test_text_and_bytes(tmp_path: Path, raw: bytes, name: str, value: str) -> None:
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        tx.create_path(raw).put(raw, raw)
    assert lines(path) == [f'{{"p":[{name}],"b":true}}', f'{{"p":[{name}],"k":{name},{value}}}']


@pytest.mark.parametrize("seed", range(10))
def test_random_content(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, model = new_db(tmp_path / "db", 1024), Model()
    with updating(path) as tx:
        for op in random_history(rng, model, 400):
            apply_to_tx(tx, op)
    assert lines(path) == model_lines(model)
    assert all(json.loads(line)["p"] for line in lines(path))


def test_a_damaged_file_has_no_first_line(tmp_path: Path) -> None:
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        for i in range(1000):
            tx.create_path(b"b").put(b"k%05d" % i, b"v")
    damage_key(path)
    with Db.open(path) as db:
        generator = dump(db)
        with pytest.raises(CorruptDatabaseError, match="keys are out of order"):
            next(generator)


def test_an_unfinished_dump_holds_a_read_transaction(tmp_path: Path) -> None:
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        tx.create_path(b"b")
        tx.create_path(b"c")
    with Db.open(path, writable=True) as db:
        generator = dump(db)
        next(generator)
        with pytest.raises(BucketError, match="another transaction is open"), db.update():
            pass
        list(generator)
        with db.update() as tx:
            tx.delete_bucket(b"b")
