"""The folder of a model run by mlx-lm, against transformers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_runs import Recipe, make_run, tiny_model, tiny_of_type, with_tokenizer
from support import slow

from globe_stream.export.model import export_model

mx = pytest.importorskip("mlx.core", reason="MLX has no wheel for this machine")
utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")

TOKENS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(5))
RECIPES = {
    "global": Recipe(),
    "tanh": Recipe(per_layer=True, activation="tanh", lam=1.0),
    "some": Recipe(families=("gate",), max_experts=7),
}


def run_by_mlx(folder: Path, cache: int | None = None) -> Any:
    """Logits of `TOKENS` from mlx-lm, twice: what is composed and what was kept."""
    model, _ = utils.load_model(folder, trust_remote_code=True)
    if cache is not None:
        model.globe_cache.budget = cache
    first, again = (np.array(model(mx.array(TOKENS.numpy()))) for _ in range(2))
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert model.globe_cache.bytes <= model.globe_cache.budget
    return first


def run_by_transformers(folder: Path) -> Any:
    """Logits of `TOKENS` from transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True
    )
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, (8, 8), (6, 3)])
@pytest.mark.parametrize("name", RECIPES)
def test_logits_equal_those_of_transformers(
    tmp_path: Path, model: Path, name: str, bits: tuple[int, int] | None
) -> None:
    run = make_run(tmp_path / "run", model, RECIPES[name])
    export_model(run, tmp_path / "out", dtype="fp32", bits=bits)
    found = run_by_mlx(tmp_path / "out", cache=30_000)
    np.testing.assert_allclose(found, run_by_transformers(tmp_path / "out"), atol=1e-3)


@pytest.mark.parametrize("kind", ["olmoe", slow("mixtral"), slow("qwen3_moe")])
def test_other_types(tmp_path: Path, kind: str) -> None:
    source = tiny_of_type(tmp_path / "source", kind)
    run = make_run(tmp_path / "run", source)
    export_model(run, tmp_path / "out", dtype="fp32")
    found = run_by_mlx(tmp_path / "out")
    np.testing.assert_allclose(found, run_by_transformers(tmp_path / "out"), atol=1e-3)


def test_remote_code_must_be_trusted(tmp_path: Path, run: Path) -> None:
    export_model(run, tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code"):
        utils.load_model(tmp_path / "out")


@pytest.mark.slow
def test_text_by_command(tmp_path: Path) -> None:
    source = with_tokenizer(tiny_model(tmp_path / "source", dtype=torch.bfloat16))
    export_model(make_run(tmp_path / "run", source), tmp_path / "out", bits=(8, 4))
    options = ["--prompt", "Experts", "--max-tokens", "5", "--ignore-chat-template"]
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--trust-remote-code", *options], check=True, capture_output=True, text=True
    )
    assert "Generation: 5 tokens" in done.stdout
