"""The ledger: rows survive, a torn last line is cut off, damage is an error."""

import json
from dataclasses import dataclass

import pytest

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
    return Ledger(path, (Numbered, Other), writable=writable)


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
    line = json.dumps({"kind": "commit", "number": 3}).encode() + b"\n"
    path.write_bytes(whole + line[:kept])
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


def test_no_ledger_has_no_rows(tmp_path):
    assert opened(tmp_path / "ledger.jsonl", writable=True).rows == []


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
        ([1], "unknown kind"),
        ({"kind": "other"}, "value is missing"),
        ({"kind": "other", "value": 1.0, "more": 2}, "more is not known"),
        ({"kind": "other", "value": "1"}, "value: input should be a valid number"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, row, reason):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"ledger\.jsonl: line 1: .*{reason}") as raised:
        opened(path)
    assert "\n" not in str(raised.value)
