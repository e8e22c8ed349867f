"""metrics.jsonl: stamped rows, no NaN, torn lines cut off, every sink served."""

import json
import math

import pytest

from globe_stream.engine.metrics import Metrics, MetricsFile, finite, read_metrics
from globe_stream.errors import InputError


def test_rows_carry_the_stamps_and_the_values(tmp_path):
    metrics = Metrics([MetricsFile(tmp_path / "m.jsonl")])
    metrics.log("train", "up", {"recon/relative_frobenius_error": 0.5}, epoch=3, step=7)
    metrics.log("seed/atoms", "gate", {"alpha/popularity": [1, 2]})
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [list(row)[:5] for row in rows] == [["time", "stage", "family", "epoch", "step"]] * 2
    assert (rows[0]["stage"], rows[0]["family"], rows[0]["epoch"], rows[0]["step"]) == (
        "train", "up", 3, 7)  # fmt: skip
    assert rows[0]["recon/relative_frobenius_error"] == 0.5
    assert (rows[1]["epoch"], rows[1]["alpha/popularity"]) == (None, [1, 2])
    assert [row.to_json() for row in read_metrics(tmp_path / "m.jsonl")] == rows


def test_rows_reach_the_file_at_once(tmp_path):
    metrics = Metrics([MetricsFile(tmp_path / "m.jsonl")])
    metrics.log("train", "up", {"x": 1})
    assert len(read_metrics(tmp_path / "m.jsonl")) == 1
    metrics.close()


def test_numbers_that_json_cannot_say_become_null(tmp_path):
    metrics = Metrics([MetricsFile(tmp_path / "m.jsonl")])
    metrics.log("s", "up", {"a": math.nan, "b": [1.0, math.inf], "c": {"d": -math.inf}})
    metrics.close()
    text = (tmp_path / "m.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {text}"))
    assert (row["a"], row["b"], row["c"]) == (None, [1.0, None], {"d": None})
    assert finite([1, math.nan]) == [1, None]


STAMPS = b'"time": 1.0, "stage": "s", "family": "up", "epoch": null, "step": null'


@pytest.mark.parametrize("torn", [b"{", b'{"stage": "train", "x": 1}'])
def test_a_torn_line_is_ignored_then_cut_off(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"n": 1, %b}\n{"n": 2, %b}\n' % (STAMPS, STAMPS) + torn)
    assert [row.number("n") for row in read_metrics(path)] == [1, 2]
    metrics = Metrics([MetricsFile(path)])
    metrics.log("s", "up", {"n": 3})
    metrics.close()
    assert [row.number("n") for row in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [(b"{", "not JSON"), (b"[1]", "not a row"), (b'{"n": 1}', "needs time, stage")],
)
def test_a_damaged_line_is_named(tmp_path, damaged, reason):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"n": 1, %b}\n%b\n{"n": 2, %b}\n' % (STAMPS, damaged, STAMPS))
    with pytest.raises(InputError, match=rf"m\.jsonl: line 2: .*{reason}"):
        read_metrics(path)


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "nothing") == []


def test_every_sink_gets_every_row_and_is_closed():
    class Kept:
        def __init__(self):
            self.rows, self.closed = [], 0

        def write(self, row):
            self.rows.append(row)

        def close(self):
            self.closed += 1

    sinks = [Kept(), Kept()]
    metrics = Metrics(sinks)
    metrics.log("s", "up", {"n": 1})
    metrics.close()
    assert [len(sink.rows) for sink in sinks] == [1, 1]
    assert [sink.closed for sink in sinks] == [1, 1]
