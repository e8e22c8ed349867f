"""The ledger: rows survive, a torn last line is cut off, damage is an error."""

import json
import os
from dataclasses import dataclass

import pytest
import support

from globe_stream.errors import GlobeError, InputError
from globe_stream.store.ledger import Ledger, LedgerRow


@dataclass(frozen=True)
class Numbered(LedgerRow):
    kind = "commit"

    number: int
    text: str = "naïve\n\r"


@dataclass(frozen=True)
class Other(LedgerRow):
    kind = "other"

    value: float


def opened(path, *, writable=False):
    return Ledger(path.parent, (Numbered, Other), advice="Restore it", writable=writable)


def written(path):
    ledger = opened(path, writable=True)
    for number in range(3):
        ledger.append(Numbered(number))
    return ledger


def test_rows_come_back_in_order(tmp_path):
    rows = written(tmp_path / "ledger.jsonl").rows
    assert [row.number for row in rows] == [0, 1, 2]
    assert opened(tmp_path / "ledger.jsonl", writable=False).rows == rows


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_torn_last_line_is_ignored_then_cut_off(tmp_path, kept):
    path = tmp_path / "ledger.jsonl"
    whole = written(path).path.read_bytes()
    head = path.with_suffix(".head").read_bytes()
    opened(path, writable=True).append(Numbered(3))
    line = path.read_bytes().removeprefix(whole)
    path.write_bytes(whole + line[:kept])
    path.with_suffix(".head").write_bytes(head)
    assert len(opened(path, writable=False).rows) == 3
    assert path.read_bytes() == whole + line[:kept], "reading must not change the file"
    ledger = opened(path, writable=True)
    assert path.read_bytes() == whole
    ledger.append(Numbered(4))
    assert [row.number for row in opened(path, writable=False).rows] == [0, 1, 2, 4]


@pytest.mark.parametrize("garbage", [b'{"kind": \n', b"\xff\xfe\n", b"\n"])
def test_a_damaged_line_is_an_error_that_names_it(tmp_path, garbage):
    path = tmp_path / "ledger.jsonl"
    lines = written(path).path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + garbage + lines[2])
    with pytest.raises(GlobeError, match=r"ledger\.jsonl: line 2 "):
        opened(path, writable=True)
    assert path.read_bytes() == lines[0] + garbage + lines[2]


@pytest.mark.slow
def test_any_flipped_bit_is_noticed(tmp_path):
    path = written(tmp_path / "ledger.jsonl").path
    for file in (path, path.with_suffix(".head")):
        whole = file.read_bytes()
        for bit in range(8 * len(whole)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(GlobeError, match=r"ledger\.(jsonl|head): .*\. Restore it"):
                opened(path)
        file.write_bytes(whole)
    assert len(opened(path).rows) == 3


def test_a_ledger_that_was_cut_off_is_noticed_wherever(tmp_path):
    path = written(tmp_path / "ledger.jsonl").path
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(GlobeError, match=r"ends after \d whole rows of 3"):
            opened(path, writable=True)
        assert path.read_bytes() == whole[:kept]


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 1, 2), (1, 2), (0, 2)])
def test_rows_that_were_moved_repeated_or_lost_are_noticed(tmp_path, order):
    path = written(tmp_path / "ledger.jsonl").path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[k] for k in order))
    with pytest.raises(GlobeError, match="does not have its checksum"):
        opened(path)


def test_the_head_may_lag_behind(tmp_path, monkeypatch):
    """As after a crash between the row and the head; or where the head was never made."""
    ledger = written(tmp_path / "ledger.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)
        ledger.append(Numbered(3))
    assert [row.number for row in opened(ledger.path).rows] == [0, 1, 2, 3]
    ledger.path.with_suffix(".head").unlink()
    again = opened(ledger.path, writable=True)
    again.append(Numbered(4))
    assert [row.number for row in opened(ledger.path).rows] == [0, 1, 2, 3, 4]


def test_no_ledger_has_no_rows(tmp_path):
    assert opened(tmp_path / "ledger.jsonl", writable=True).rows == []


@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.head.partial"])
def test_a_row_that_does_not_fit_leaves_no_trace(tmp_path, monkeypatch, name):
    from globe_stream.store import ledger as module

    ledger = written(tmp_path / "ledger.jsonl")
    before = ledger.path.read_bytes()

    def full(file, data):
        file.write(data[:5])
        if str(file.name).endswith(name):
            raise OSError(28, "No space left on device")
        file.write(data[5:])

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_all", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.append(Numbered(3))
    assert ledger.path.read_bytes() == before
    ledger.append(Numbered(4))
    assert [row.number for row in opened(ledger.path, writable=False).rows] == [0, 1, 2, 4]


def test_rows_of_several_kinds_come_back_as_what_they_were(tmp_path):
    ledger = written(tmp_path / "ledger.jsonl")
    ledger.append(Other(float("inf")))
    assert opened(ledger.path).rows == [*map(Numbered, range(3)), Other(float("inf"))]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"kind": "third"}, "unknown kind; known are commit, other"),
        ({"kind": "other"}, "value is missing"),
        ({"kind": "other", "value": 1.0, "more": 2}, "more is not known"),
        ({"kind": "other", "value": "1"}, "value: input should be a valid number"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, row, reason):
    path = tmp_path / "ledger.jsonl"
    support.write_ledger(tmp_path, [json.dumps(row)])
    with pytest.raises(InputError, match=rf"ledger\.jsonl: line 1: .*{reason}") as raised:
        opened(path)
    assert "\n" not in str(raised.value)
