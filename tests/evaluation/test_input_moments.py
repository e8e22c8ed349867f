"""Inputs of experts against the model's own modules, and the windows that are read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from globe_stream.errors import InputError
from globe_stream.evaluation.input_moments import (
    LEAST_SHARE,
    LENGTH,
    MOST_TOKENS,
    add_moments,
    windows_of,
    windows_together,
)
from globe_stream.memory.forward_pass import ForwardPass


def test_moments_are_those_of_what_the_norm_before_the_experts_gives(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(1))
    outputs: dict[int, torch.Tensor] = {}
    layers = list(loaded.model.layers)
    for number, layer in enumerate(layers):
        layer.post_attention_layernorm.register_forward_hook(
            lambda _, __, out, n=number: outputs.update({n: out.flatten(0, 1).double()})
        )
    found: dict[int, torch.Tensor] = {}
    modules = {number: layer.mlp.experts for number, layer in enumerate(layers)}
    add_moments(loaded, modules, tokens, lambda layer, product: found.update({layer: product}))
    assert sorted(found) == sorted(outputs) == list(range(len(layers)))
    for number, inputs in outputs.items():
        torch.testing.assert_close(found[number].double(), inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in modules.values())


def test_windows_are_spread_over_all_texts(tmp_path: Path) -> None:
    content = {"a": bytes(range(256)) * 40, "b": b"xy" * 5000}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    read = windows_of([tmp_path / "a", tmp_path / "b"], 256, tmp_path, 16)
    assert all(len(one) == LENGTH for one in read)
    expected = [
        list(data[start : start + LENGTH])
        for data in content.values()
        for start in range(0, len(data) - LENGTH + 1, LENGTH)
    ]
    assert [one.tolist() for one in read] == expected


def test_no_more_is_read_of_long_texts(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * (2 * MOST_TOKENS))
    read = windows_of([tmp_path / "a", tmp_path / "b"], 256, tmp_path, 16)
    assert len(read) * LENGTH == MOST_TOKENS
    assert [int(one[0]) for one in read] == [ord("a")] * 256 + [ord("b")] * 256


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    width = 64
    (tmp_path / "text").write_bytes(b"x" * (LEAST_SHARE * width))
    assert len(windows_of([tmp_path / "text"], 256, tmp_path, width)) == 2
    with pytest.raises(InputError, match=r"512 tokens say too little .* 65 channels: 520 are"):
        windows_of([tmp_path / "text"], 256, tmp_path, width + 1)


def test_as_many_windows_together_as_the_model_allows_whatever_the_memory() -> None:
    def sizes(**given: Any) -> ForwardPass:
        wanted = {"vocabulary": 100, "hidden": 8, "width": 20, "heads": 2, "itemsize": 4}
        return ForwardPass(**{**wanted, **given}, eager=False)

    assert windows_together(sizes()) == 16
    assert windows_together(sizes(width=1 << 24)) == 1
    one = sizes(width=1 << 16)
    assert windows_together(one) == (512 << 20) // one.bytes(1, LENGTH) < 16
