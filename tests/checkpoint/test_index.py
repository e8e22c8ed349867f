"""The index: names to experts, selections, and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_files import QWEN, qwen_tensors, random_tensor, write_checkpoint

from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.checkpoint.selection import parse_layers
from globe_stream.errors import InputError


@pytest.fixture(params=[1, 3])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> ExpertIndex:
    return open_index(str(write_checkpoint(tmp_path, qwen_tensors(), QWEN, request.param)))


def test_summary(index: ExpertIndex) -> None:
    summary = index.summary()
    assert summary.model_type == "qwen2_moe"
    assert summary.shards == len(index.files)
    assert summary.bytes == sum(path.stat().st_size for path in index.files)
    assert summary.layout.startswith("A (model.layers.{L}.mlp.experts.{E}.")
    assert summary.shared_experts == 2
    for family in ("up", "gate", "down"):
        assert summary.families[family].to_json() == {
            "experts": 6, "p": 5, "d": 8, "dtype": "F32", "bytes": 6 * 5 * 8 * 4,
            "layers": [0, 1], "experts_per_layer": 3,
        }  # fmt: skip
    json.dumps(summary.to_json())


def test_every_expert_is_the_tensor_of_its_name(index: ExpertIndex) -> None:
    tensors = qwen_tensors()
    for family, experts in index.experts.items():
        assert [(e.layer, e.expert) for e in experts] == [(i, j) for i in (0, 1) for j in range(3)]
        for e in experts:
            name = f"model.layers.{e.layer}.mlp.experts.{e.expert}.{family}_proj.weight"
            assert torch.equal(read_expert(e), tensors[name])


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    tensors = qwen_tensors(layers=12, experts=11, p=1, d=1)
    config = QWEN | {"num_experts": 11, "num_hidden_layers": 12}
    experts = open_index(str(write_checkpoint(tmp_path, tensors, config))).experts["up"]
    assert [e.layer for e in experts] == [i for i in range(12) for _ in range(11)]
    assert [e.expert for e in experts] == list(range(11)) * 12


def test_fingerprint_notices_size_and_header(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path, qwen_tensors(), QWEN)
    first = open_index(str(root)).fingerprint()
    assert first == open_index(str(root)).fingerprint()
    tensors = qwen_tensors()
    tensors["model.other.weight"] = tensors.pop("model.embed_tokens.weight")
    write_checkpoint(tmp_path, tensors, QWEN)
    assert open_index(str(root)).fingerprint() != first


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(single_layer=1), [(1, 0), (1, 1), (1, 2)]),
        (Selection(layers=(0, 1)), [(0, 0), (0, 1), (0, 2)]),
        (Selection(max_experts=2), [(0, 0), (0, 1)]),
        (Selection(max_experts=3, sample_method="evenly_spaced"), [(0, 0), (0, 2), (1, 1)]),
        (Selection(max_experts=99), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        (Selection(layers=(1, 2), max_experts=1), [(1, 0)]),
    ],
)
def test_selection(
    index: ExpertIndex, selection: Selection, expected: list[tuple[int, int]]
) -> None:
    chosen = index.select(selection)
    assert set(chosen.experts) == {"up", "gate"}
    for experts in chosen.experts.values():
        assert [(e.layer, e.expert) for e in experts] == expected


def test_shared_experts_are_blocks_of_rows(index: ExpertIndex) -> None:
    tensors = qwen_tensors()
    families = ("up", "gate", "down")
    chosen = index.select(Selection(families, single_layer=1, include_shared=True))
    for family in families:
        experts = chosen.experts[family]
        assert [(e.shared, e.expert) for e in experts] == [
            (False, 0), (False, 1), (False, 2), (True, 0), (True, 1)
        ]  # fmt: skip
        whole = tensors[f"model.layers.1.mlp.shared_expert.{family}_proj.weight"]
        parts = whole.split(5, dim=1 if family == "down" else 0)
        for part, expert in zip(parts, experts[3:], strict=True):
            assert torch.equal(read_expert(expert), part)


def test_shared_experts_of_a_size_that_is_no_multiple(tmp_path: Path) -> None:
    tensors = qwen_tensors()
    for family, shape in (("up", (7, 8)), ("gate", (7, 8)), ("down", (8, 7))):
        tensors[f"model.layers.0.mlp.shared_expert.{family}_proj.weight"] = random_tensor(*shape)
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))
    with pytest.raises(InputError, match="size 7, no multiple of the routed experts' 5"):
        index.select(Selection(include_shared=True))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(single_layer=7), "routed experts are in the layers 0-1"),
        (Selection(max_experts=0), "at least 1"),
        (Selection(("sideways",)), "no sideways matrices"),
    ],
)
def test_selection_of_nothing(index: ExpertIndex, selection: Selection, message: str) -> None:
    with pytest.raises(InputError, match=message):
        index.select(selection)


def test_layers_text() -> None:
    assert parse_layers("0:12") == (0, 12)
    for text in ("3", "a:b", "4:4", ":3", "5:2"):
        with pytest.raises(InputError, match="layers"):
            parse_layers(text)


def test_multi_token_prediction_layers_are_left_out(tmp_path: Path) -> None:
    tensors = qwen_tensors(layers=3)
    for name in list(tensors):
        if name.startswith("model.layers.1."):
            extra = name.replace("model.layers.1.", "mtp.layers.0.")
            tensors[extra] = tensors[name] + 1
    root = str(write_checkpoint(tmp_path, tensors, QWEN))
    index = open_index(root)
    assert {e.layer for e in index.experts["up"]} == {0, 1}
    assert index.summary().mtp_layers_left_out == 2
    assert len(index.shared["up"]) == 2


def test_multi_token_prediction_layers_on_request(tmp_path: Path) -> None:
    tensors = qwen_tensors()
    for name in list(tensors):
        if name.startswith("model.layers.1."):
            tensors[name.replace("model.layers.1.", "mtp.layers.0.")] = tensors[name] + 1
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)), include_mtp=True)
    experts = index.experts["up"]
    assert [e.layer for e in experts] == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(read_expert(experts[6]), read_expert(experts[3]) + 1)


def test_dense_layers_and_traps_are_no_experts(tmp_path: Path) -> None:
    tensors = qwen_tensors()
    for name in (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.gate.e_score_correction_bias",
        "model.layers.0.mlp.experts.gate_up_proj_bias",
        "model.layers.0.mlp.experts.0.up_proj.bias",
        "model.layers.0.feed_forward.w1.weight",
    ):
        tensors[name] = random_tensor(4, 4)
    tensors["model.layers.0.self_attention.experts.input_linear.weight"] = random_tensor(3, 4, 4)
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))
    assert {family: len(experts) for family, experts in index.experts.items()} == dict.fromkeys(
        ("up", "gate", "down"), 6
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.0.mlp.experts.0.up_proj.weight_packed", "does not belong beside"),
        ("model.layers.0.mlp.experts.0.side_proj.weight", "matches no known layout"),
        ("model.layers.0.mlp.experts.gate_proj", "orientation is not known"),
        ("model.layers.0.moe.experts.0.gate_proj.weight", "matches no known layout"),
        ("model.layers.0.mlp.gate_up_stack", "matches no known layout"),
    ],
)
def test_unmatched_expert_tensor_is_named(tmp_path: Path, name: str, reason: str) -> None:
    tensors = qwen_tensors() | {name: random_tensor(3, 4, 4)}
    with pytest.raises(InputError, match=f"tensor {name} .*{reason}"):
        open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))


def test_names_decide_for_unknown_types(tmp_path: Path) -> None:
    tensors = {f"language_model.{name}": tensor for name, tensor in qwen_tensors().items()}
    root = str(write_checkpoint(tmp_path, tensors, {"model_type": "something_new"}))
    assert len(open_index(root).experts["up"]) == 6


def test_stacked_tensor_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.experts.gate_up_proj": random_tensor(2, 6, 3),
        "model.layers.0.mlp.experts.down_proj": random_tensor(2, 3, 3),
    }
    with pytest.raises(InputError, match=r"experts.gate_up_proj .* orientation is not known"):
        open_index(str(write_checkpoint(tmp_path, tensors, {"model_type": "something_new"})))


def _without(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


LAST = "model.layers.1.mlp.experts.2"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_without(qwen_tensors(), f"{LAST}.up_proj.weight"), "up of layer 1: expert 2 is missing"),
        (_without(qwen_tensors(), *(f"{LAST}.{f}_proj.weight" for f in ("up", "gate", "down"))),
         "layer 1: expert 2 is missing, 3 experts a layer were expected"),
        ({"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2)}, "has no routed experts"),
        (qwen_tensors() | {f"{LAST}.up_proj.weight": torch.zeros(6, 8)}, "shape"),
        (qwen_tensors() | {f"{LAST}.up_proj.weight": torch.zeros(5, 8, dtype=torch.float64)},
         "dtype F64, which is unsupported"),
        (qwen_tensors() | {f"{LAST}.up_proj.weight": torch.zeros(5, 8).to(torch.float8_e4m3fn)},
         "has no scale_inv beside it"),
        (qwen_tensors(experts=4), "layer 0: there is an expert 3, 3 experts a layer"),
        (qwen_tensors() | {f"other.layers.0.mlp.experts.0.{f}_proj.weight": torch.zeros(5, 8)
                           for f in ("up", "gate")}, "layer 0, expert 0 is stored twice"),
        (qwen_tensors() | {f"{LAST}.w3.weight": torch.zeros(5, 8)}, "is the same matrix as"),
    ],
)  # fmt: skip
def test_refuses(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    root = str(write_checkpoint(tmp_path, tensors, QWEN))
    with pytest.raises(InputError, match=message) as caught:
        open_index(root)
    assert "\n" not in str(caught.value)
    assert root in str(caught.value)


def test_refuses_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_index(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no safetensors"):
        open_index(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match="models/none: no such folder"):
        open_index("models/none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_index(str(tmp_path / "file"))


def test_refuses_incomplete_sets_of_shards(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path, qwen_tensors(), QWEN, shards=3)
    index_file = root / "model.safetensors.index.json"
    text = index_file.read_text()
    index_file.unlink()
    with pytest.raises(InputError, match="3 safetensors files and no"):
        open_index(str(root))
    index_file.write_text(text.replace("model.embed_tokens.weight", "model.ghost.weight"))
    with pytest.raises(InputError, match=r"model.ghost.weight is in .*, where it is not"):
        open_index(str(root))
    index_file.write_text(text)
    (root / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003.safetensors, which is missing"):
        open_index(str(root))


def test_down_is_not_needed(tmp_path: Path) -> None:
    tensors = {n: t for n, t in qwen_tensors().items() if "experts" in n and "down" not in n}
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))
    assert set(index.experts) == {"up", "gate"}


def test_a_local_folder_has_nothing_to_fetch(index: ExpertIndex) -> None:
    index.fetch(index.experts["up"])
    assert replace(index, revision="abc").fingerprint().revision == "abc"


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "a/../../x.safetensors", "/etc/x.safetensors", "", ".", 7, None]
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    folder = write_checkpoint(tmp_path / "m", qwen_tensors(), QWEN, shards=2)
    shutil.copy(folder / "model-00001-of-00002.safetensors", tmp_path / "x.safetensors")
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    for name, file in index["weight_map"].items():
        if "00001" in file:
            index["weight_map"][name] = shard
    index_file.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"which does not lie in the folder\. Download") as caught:
        open_index(str(folder))
    assert str(index_file) in str(caught.value)
    assert repr(shard) in str(caught.value)


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", qwen_tensors(), QWEN, shards=2)
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    weights = index["weight_map"]
    name = next(iter(weights))
    weights[name] = next(file for file in weights.values() if file != weights[name])
    index_file.write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"says that tensor {name} is in .*, where it is not"):
        open_index(str(folder))


def test_shards_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", qwen_tensors(), QWEN, shards=2)
    names = {}
    for number, place in enumerate(("a", "b"), start=1):
        old = f"model-{number:05d}-of-00002.safetensors"
        names[old] = f"{place}/model.safetensors"
        (folder / place).mkdir()
        (folder / old).rename(folder / names[old])
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"] = {name: names[file] for name, file in index["weight_map"].items()}
    index_file.write_text(json.dumps(index))
    assert sorted(open_index(str(folder)).fingerprint().files) == sorted(names.values())
