"""The table of models, made by one call."""

import json
import math
from pathlib import Path

import pytest
import torch
from sample_runs import (
    EXPERTS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    Recipe,
    make_run,
    tiny_model,
)

from globe_stream.cli.result_text import comparison
from globe_stream.commands.models import Loading, estimate_loading
from globe_stream.commands.scoring import Scoring, compare_models
from globe_stream.config import Windows
from globe_stream.errors import InputError
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.memory.model_memory import held_weights

WINDOWS = Windows(count=4, length=32, stride=500)


@pytest.mark.slow
def test_table_of_all_models(tmp_path: Path, model: Path, run: Path, text: Path) -> None:
    larger = make_run(tmp_path / "larger", model, Recipe(bases=6, rank=22))
    found = compare_models(
        [run, larger],
        Scoring(
            text,
            models=("original", "dense", "patched", "svd"),
            windows=WINDOWS,
            work=tmp_path / "work",
        ),
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
    dense, svd = found.rows[1], found.rows[3]
    kept = INTERMEDIATE * 18 + 5 * 18 * HIDDEN / (LAYERS * EXPERTS)
    rank = int(kept / (INTERMEDIATE + HIDDEN))
    assert (svd.bases, svd.rank) == (None, rank)
    whole = INTERMEDIATE * HIDDEN
    assert svd.parameters_kept == pytest.approx(rank * (INTERMEDIATE + HIDDEN) / whole)
    assert svd.parameters_kept < dense.parameters_kept
    document = json.loads(json.dumps(found.to_json()))
    assert document["rows"][3]["relative_errors"].keys() == {"up", "gate"}
    lines = comparison(found).splitlines()
    assert len(lines) == 2 + 7 + 2
    assert f"{bits['larger', 'svd']:.4f}" in lines[8]
    assert lines[-1] == "Scored on 4 windows of 32 tokens."


@pytest.mark.slow
def test_original_equals_a_plain_loop(tmp_path: Path, model: Path, run: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = compare_models(
        [run], Scoring(text, models=("original",), windows=WINDOWS, work=tmp_path)
    ).rows[0]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    data, nats = text.read_bytes(), 0.0
    for start in (0, 500, 1000, 1500):
        tokens = torch.tensor(list(data[start : start + 32]))[None]
        with torch.no_grad():
            nats += 31 * float(loaded(input_ids=tokens, labels=tokens).loss)
    assert found.score.bits_per_byte == pytest.approx(nats / math.log(2) / 124, rel=1e-5)
    assert found.score.perplexity == pytest.approx(math.exp(nats / 124), rel=1e-5)


@pytest.mark.slow
def test_disk_offload_gives_the_same_scores(tmp_path: Path, run: Path, text: Path) -> None:
    models = ("original", "dense", "patched")
    plain = compare_models(
        [run], Scoring(text, models=models, windows=WINDOWS, work=tmp_path / "work")
    )
    offloaded = compare_models(
        [run],
        Scoring(
            text,
            models=models,
            windows=WINDOWS,
            work=tmp_path / "work",
            loading=Loading(offload=tmp_path / "offload", held=150_000),
        ),
    )
    for old, new in zip(plain.rows, offloaded.rows, strict=True):
        assert new.score.bits_per_byte == pytest.approx(old.score.bits_per_byte, abs=1e-5)
    assert any((tmp_path / "offload").rglob("*.dat"))


def test_seeded_runs_are_refused_as_exports_are(tmp_path: Path, model: Path, text: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(stage="seeded"))
    with pytest.raises(InputError, match="not trained"):
        compare_models([run], Scoring(text, models=("dense",), windows=WINDOWS))


def test_runs_of_different_checkpoints_are_refused(tmp_path: Path, run: Path, text: Path) -> None:
    other = make_run(tmp_path / "run", tiny_model(tmp_path / "model"))
    with pytest.raises(InputError, match="one checkpoint"):
        compare_models([run, other], Scoring(text, windows=WINDOWS))


def test_unknown_names_are_refused(run: Path, text: Path) -> None:
    with pytest.raises(InputError, match="models 'lora'"):
        compare_models([run], Scoring(text, models=("lora",)))
    with pytest.raises(InputError, match="dtype 'int3'"):
        compare_models([run], Scoring(text, models=("original",), loading=Loading(dtype="int3")))


@pytest.mark.slow
def test_a_text_too_short_for_all_windows_is_said(run: Path, text: Path, tmp_path: Path) -> None:
    windows = Windows(count=64, length=32, stride=2_500)
    found = compare_models(
        [run], Scoring(text, models=("original",), windows=windows, work=tmp_path)
    )
    assert found.rows[0].score.windows == 3
    assert "Scored on 3 windows of 32 tokens. The text is too short for the 64" in comparison(found)


def _never_loaded(*_: object) -> None:
    raise AssertionError("a model was loaded")


@pytest.mark.slow
@pytest.mark.parametrize("models", [("original",), ("dense", "svd"), ("patched",)])
def test_a_model_that_does_not_fit_is_refused_before_loading(
    run: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: tuple[str, ...],
) -> None:
    monkeypatch.setattr("globe_stream.commands.scoring.load_plain", _never_loaded)
    monkeypatch.setattr("globe_stream.commands.models.load_plain", _never_loaded)
    work = tmp_path / "work"
    said = r"memory 100\.00 MiB: scoring needs .* Raise memory, give offload"
    with pytest.raises(InputError, match=said):
        compare_models(
            [run], Scoring(text, models=models, windows=WINDOWS, work=work), memory=100 << 20
        )
    assert not work.exists()
    said = "offload needs more than"
    offload = Loading(offload=tmp_path / "offload")
    with pytest.raises(InputError, match=said):
        compare_models(
            [run], Scoring(text, models=models, windows=WINDOWS, loading=offload), memory=100 << 20
        )


@pytest.mark.slow
def test_the_price_counts_weights_mapped_shards_and_factors(run: Path) -> None:
    with open_trained_run(run, trained=False) as source:
        plain = estimate_loading(source.index, [], Loading(), 32)
        patched = estimate_loading(source.index, [source], Loading(), 32)
    stored = sum(path.stat().st_size for path in source.index.files)
    assert plain.weights == pytest.approx(3 * stored, rel=0.1)  # BF16 as stored, FP32 in memory
    banks, adapters, codes = 2 * 5 * 18 * 32, 2 * 12 * 24 * 18, 2 * 12 * 5
    composed = 2 * 12 * 18 * 32
    assert patched.weights - plain.weights == 4 * (banks + adapters + codes + composed)


def test_offload_holds_what_memory_leaves(run: Path) -> None:
    with open_trained_run(run, trained=False) as source:
        needs = estimate_loading(source.index, [], Loading(), 32)
    assert held_weights(needs, needs.total, offload=True) == needs.weights
    assert held_weights(needs, needs.total - 1000, offload=True) == needs.weights - 1000
    assert held_weights(needs, needs.total, offload=False) is None


@pytest.mark.slow
def test_a_work_folder_that_cannot_be_made(run: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for work in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(InputError, match=f"{work}.* while making the folder"):
            compare_models([run], Scoring(text, models=("original",), windows=WINDOWS, work=work))


def test_checks_come_before_any_model(
    run: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("globe_stream.commands.scoring.load_plain", _never_loaded)
    with pytest.raises(InputError, match="too few for one window"):
        compare_models(
            [run],
            Scoring(
                text, models=("original",), windows=Windows(count=4, length=10_000, stride=500)
            ),
        )


@pytest.mark.slow
def test_a_window_that_does_not_fit_is_refused_before_loading(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("globe_stream.commands.scoring.load_plain", _never_loaded)
    (tmp_path / "long").write_bytes(b"abcdefgh" * 5_000)
    with open_trained_run(run, trained=False) as source:
        short = estimate_loading(source.index, [], Loading(), 256)
    windows = Windows(count=1, length=20_000, stride=1)
    scoring = Scoring(tmp_path / "long", models=("original",), windows=windows)
    with pytest.raises(InputError, match=r"for a window of text\)\. .* a shorter window_length"):
        compare_models([run], scoring, memory=short.total + (128 << 20))
