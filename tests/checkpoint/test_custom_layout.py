"""Rules given by the user, and what is said where no rule is known."""

import json
from pathlib import Path

import pytest
import torch
from tiny_files import random_tensor, write_checkpoint
from torch import Tensor

from globe_stream.checkpoint.advice import nearest, pattern_of
from globe_stream.checkpoint.custom_layout import layout_text, rule_of
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.config import SelectionConfig
from globe_stream.errors import InputError

E, P, D = 3, 4, 6
NEW = {"model_type": "brand_new", "num_hidden_layers": 1, "n_experts": E, "hidden_size": D,
       "expert_dim": P}  # fmt: skip
RULE = """
kinds = "A"
module = "block.pool"
shared = "block.common"
count = "n_experts"
size = "expert_dim"
[names]
wg = "gate"
wu = "up"
wd = "down"
"""


def _tensors() -> dict[str, Tensor]:
    root, found = "net.layers.0.block", {}
    parts = [(f"pool.{e}", P) for e in range(E)] + [("common", 2 * P)]
    for i, (part, size) in enumerate(parts):
        for j, name in enumerate(("wg", "wu", "wd")):
            shape = (D, size) if name == "wd" else (size, D)
            found[f"{root}.{part}.{name}.weight"] = random_tensor(*shape, seed=10 * i + j)
    return found


@pytest.mark.parametrize("form", ["toml", "json", "line"])
def test_names_of_ones_own(tmp_path: Path, form: str) -> None:
    model = str(write_checkpoint(tmp_path / "model", _tensors(), NEW))
    file = tmp_path / "rule"
    file.write_text(RULE if form == "toml" else layout_text_of(tmp_path))
    given = str(file) if form != "line" else file.read_text()
    selection = SelectionConfig(layout=given)
    assert selection.identity()["layout"] == layout_text_of(tmp_path)
    index = open_index(model, rule=selection.rule)
    for family, name in (("gate", "wg"), ("up", "wu"), ("down", "wd")):
        for expert in index.experts[family]:
            tensor = _tensors()[f"net.layers.0.block.pool.{expert.expert}.{name}.weight"]
            assert torch.equal(read_expert(expert), tensor)
        assert index.shared[family][0].shape == ((D, 2 * P) if family == "down" else (2 * P, D))


def layout_text_of(folder: Path) -> str:
    (folder / "own.toml").write_text(RULE)
    return layout_text(str(folder / "own.toml"))


@pytest.mark.parametrize(("kind", "turned"), [("C", False), ("D", True), ("G", False)])
def test_stacks_are_checked_by_their_shapes(tmp_path: Path, kind: str, turned: bool) -> None:
    up, down = random_tensor(E, P, D), random_tensor(E, D, P)
    both = torch.cat([up + 1, up], 1)
    stacks = {"up_proj": up, "gate_proj": up + 1} if kind == "G" else {"gate_up_proj": both}
    stacks["down_proj"] = down
    tensors = {
        f"layers.0.pool.{name}": stack.transpose(1, 2) if turned else stack
        for name, stack in stacks.items()
    }
    model = str(write_checkpoint(tmp_path, tensors, NEW))
    text = json.dumps({"kinds": kind, "module": "pool", "count": "n_experts"})
    index = open_index(model, rule=rule_of(layout_text(text)))
    for expert in index.experts["up"]:
        assert torch.equal(read_expert(expert), up[expert.expert])
    if kind != "G":
        other = json.dumps({"kinds": "D" if kind == "C" else "C", "module": "pool"})
        with pytest.raises(InputError, match=r"pool.gate_up_proj has shape .* fits none"):
            open_index(model, rule=rule_of(layout_text(other)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kinds =", "is neither TOML nor JSON"),
        ('kinds = "A"\nkind = 1', "unknown key 'kind'; known: kinds, module"),
        ('module = "x"', "kinds is None; some of the letters ABCDEFGH"),
        ('kinds = "AZ"', "kinds is 'AZ'"),
        ('kinds = "A"\nmodule = 3', "module is 3; text is needed"),
        ('kinds = "A"\ngated = "no"', "gated is 'no'; true or false"),
        ('kinds = "A"\n[names]\nwg = "left"', "names is {'wg': 'left'}; a table"),
        (None, "cannot be read: No such file"),
    ],
)
def test_rules_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "rule").write_text(text)
    with pytest.raises(InputError) as caught:
        SelectionConfig(layout=str(tmp_path / "rule"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_type_says_what_was_seen_and_what_is_nearest(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.{layer}.mlp.experts.{e}.{name}.weight": random_tensor(P, D)
        for layer in range(2)
        for e in range(E)
        for name in ("gate_prj", "up_prj")
    }
    with pytest.raises(InputError) as caught:
        open_index(str(write_checkpoint(tmp_path, tensors, NEW)))
    text = str(caught.value)
    assert "model.layers.0.mlp.experts.0.gate_prj.weight" in text
    assert "Seen: model.layers.{L}.mlp.experts.{E}.gate_prj.weight [4, 6], " in text
    assert "The nearest rule is that of qwen2_moe (kinds A, C in mlp.experts)" in text
    assert "layout FILE (docs/layouts.md)" in text


def test_numbered_matrices_are_shown_where_nothing_is_called_an_expert(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.{layer}.ffn.pool.{e}.{name}.weight": random_tensor(P, D)
        for layer in range(2)
        for e in range(E)
        for name in ("open", "wide")
    } | {"model.layers.0.attn.q_proj.weight": random_tensor(P, D)}
    with pytest.raises(InputError) as caught:
        open_index(str(write_checkpoint(tmp_path, tensors, NEW)))
    text = str(caught.value)
    assert "no tensor is named like one. Seen: model.layers.{L}.ffn.pool.{E}.open.weight [4" in text
    assert "q_proj" not in text
    assert "The nearest rule is that of" in text


def test_the_nearest_rule() -> None:
    assert pattern_of("a.layers.3.experts.17.w1.weight") == "a.layers.{L}.experts.{E}.w1.weight"
    cases = {
        "x.layers.{L}.block_sparse_moe.expert.{E}.w1.weight": "mixtral",
        "x.layers.{L}.feed_forward.experts.{E}.w1.weight": "lfm2_moe",
        "x.layers.{L}.mixer.experts.{E}.up.weight": "nemotron_h",
        "x.layers.{L}.moe.gate_projection.weight": "step3p5",
        "x.layers.{L}.ffn.expert.{E}.w2.weight": "deepseek_v4",
    }
    for pattern, name in cases.items():
        assert nearest([pattern])[0] == name
