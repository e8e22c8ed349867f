"""The table of models, made by one call."""

import json
import math
from pathlib import Path

import pytest
import torch
from sample_runs import Recipe, make_run, tiny_model

from globe_stream.errors import InputError
from globe_stream.evaluation.compare import compare
from globe_stream.evaluation.text import Windows
from globe_stream.evaluation.variants import Loading

WINDOWS = Windows(4, 32, 500)


def test_table_of_all_models(tmp_path: Path, model: Path, run: Path, text: Path) -> None:
    larger = make_run(tmp_path / "larger", model, Recipe(bases=6, rank=22))
    found = compare(
        [run, larger],
        text,
        models=("original", "dense", "patched", "svd"),
        windows=WINDOWS,
        work=tmp_path / "work",
    )
    assert [(row.run, row.model) for row in found.rows] == [
        ("", "original"),
        ("run", "dense"),
        ("run", "patched"),
        ("run", "svd"),
        ("larger", "dense"),
        ("larger", "patched"),
        ("larger", "svd"),
    ]
    bits = {(row.run, row.model): row.score.bits_per_byte for row in found.rows}
    assert bits["run", "dense"] == pytest.approx(bits["run", "patched"], abs=0.02)
    assert bits["run", "dense"] != bits["", "original"]
    assert found.rows[1].parameters_kept < found.rows[4].parameters_kept
    document = json.loads(json.dumps(found.document()))
    assert document["rows"][3]["relative_errors"].keys() == {"up", "gate"}
    lines = found.markdown().splitlines()
    assert len(lines) == 2 + 7
    assert f"{bits['larger', 'svd']:.4f}" in lines[-1]


def test_original_equals_a_plain_loop(tmp_path: Path, model: Path, run: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = compare([run], text, models=("original",), windows=WINDOWS, work=tmp_path).rows[0]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    data, nats = text.read_bytes(), 0.0
    for start in (0, 500, 1000, 1500):
        tokens = torch.tensor(list(data[start : start + 32]))[None]
        with torch.no_grad():
            nats += 31 * float(loaded(input_ids=tokens, labels=tokens).loss)
    assert found.score.bits_per_byte == pytest.approx(nats / math.log(2) / 124, rel=1e-5)
    assert found.score.perplexity == pytest.approx(math.exp(nats / 124), rel=1e-5)


def test_disk_offload_gives_the_same_scores(tmp_path: Path, run: Path, text: Path) -> None:
    models = ("original", "dense", "patched")
    plain = compare([run], text, models=models, windows=WINDOWS, work=tmp_path / "work")
    offloaded = compare(
        [run],
        text,
        models=models,
        windows=WINDOWS,
        work=tmp_path / "work",
        loading=Loading(offload=tmp_path / "offload", held=150_000),
    )
    for old, new in zip(plain.rows, offloaded.rows, strict=True):
        assert new.score.bits_per_byte == pytest.approx(old.score.bits_per_byte, abs=1e-5)
    assert any((tmp_path / "offload").rglob("*.dat"))


def test_seeded_runs_are_refused_as_exports_are(tmp_path: Path, model: Path, text: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(stage="seeded"))
    with pytest.raises(InputError, match="not trained"):
        compare([run], text, models=("dense",), windows=WINDOWS)


def test_runs_of_different_checkpoints_are_refused(tmp_path: Path, run: Path, text: Path) -> None:
    other = make_run(tmp_path / "run", tiny_model(tmp_path / "model"))
    with pytest.raises(InputError, match="one checkpoint"):
        compare([run, other], text, windows=WINDOWS)


def test_unknown_names_are_refused(run: Path, text: Path) -> None:
    with pytest.raises(InputError, match="--models 'lora'"):
        compare([run], text, models=("lora",))
    with pytest.raises(InputError, match="--dtype 'int3'"):
        compare([run], text, models=("original",), loading=Loading(dtype="int3"))
