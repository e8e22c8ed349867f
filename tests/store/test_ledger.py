"""The ledger: rows survive, a torn last line is cut off, damage is an error."""

import json

import pytest

from globe_stream.errors import GlobeError
from globe_stream.store.ledger import Ledger


def written(path):
    ledger = Ledger(path, writable=True)
    for number in range(3):
        ledger.append({"kind": "commit", "number": number, "text": "naïve\n\r"})
    return ledger


def test_rows_come_back_in_order(tmp_path):
    rows = written(tmp_path / "ledger.jsonl").rows
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert Ledger(tmp_path / "ledger.jsonl", writable=False).rows == rows


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_torn_last_line_is_ignored_then_cut_off(tmp_path, kept):
    path = tmp_path / "ledger.jsonl"
    whole = written(path).path.read_bytes()
    line = json.dumps({"kind": "commit", "number": 3}).encode() + b"\n"
    path.write_bytes(whole + line[:kept])
    assert len(Ledger(path, writable=False).rows) == 3
    assert path.read_bytes() == whole + line[:kept], "reading must not change the file"
    ledger = Ledger(path, writable=True)
    assert path.read_bytes() == whole
    ledger.append({"number": 4})
    assert [row["number"] for row in Ledger(path, writable=False).rows] == [0, 1, 2, 4]


@pytest.mark.parametrize("garbage", [b'{"kind": \n', b"\xff\xfe\n", b"\n"])
def test_a_damaged_line_is_an_error_that_names_it(tmp_path, garbage):
    path = tmp_path / "ledger.jsonl"
    lines = written(path).path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + garbage + lines[2])
    with pytest.raises(GlobeError, match=r"ledger\.jsonl: line 2 "):
        Ledger(path, writable=True)
    assert path.read_bytes() == lines[0] + garbage + lines[2]


def test_no_ledger_has_no_rows(tmp_path):
    assert Ledger(tmp_path / "ledger.jsonl", writable=True).rows == []


def test_a_row_that_does_not_fit_leaves_no_trace(tmp_path, monkeypatch):
    from globe_stream.store import ledger as module

    ledger = written(tmp_path / "ledger.jsonl")
    before = ledger.path.read_bytes()

    def full(file, data):
        file.write(data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_all", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.append({"number": 3})
    assert ledger.path.read_bytes() == before
    ledger.append({"number": 4})
    assert [row["number"] for row in Ledger(ledger.path, writable=False).rows] == [0, 1, 2, 4]
