"""Stand-ins say of themselves what the models' published files say, and take no room."""

from dataclasses import replace

import pytest
from safetensors import safe_open

from globe_stream.checkpoint.index import open_index
from globe_stream.errors import InputError
from globe_stream.synthetic.stand_in import STAND_INS, write_stand_in

FEW = {name: replace(model, layers=model.dense + 2) for name, model in STAND_INS.items()}
STORED = {"bf16": "BF16", "fp8": "F8_E4M3", "mxfp4": "MXFP4"}


@pytest.mark.parametrize("name", sorted(FEW))
def test_headers_are_those_of_the_model_and_the_disk_is_not_used(tmp_path, name):
    model = FEW[name]
    index = open_index(str(write_stand_in(tmp_path / "model", model)))
    summary = index.summary()
    assert summary.model_type == model.model_type
    for family in ("up", "gate"):
        found = summary.families[family]
        assert (found.p, found.d) == (model.intermediate, model.hidden)
        assert (found.experts, found.experts_per_layer) == (2 * model.experts, model.experts)
        assert found.dtype == STORED[model.storage]
        assert found.layers == (model.dense, model.dense + 1)
    assert summary.bytes > 2**28
    assert sum(path.stat().st_blocks * 512 for path in index.files) < 2**22


def test_another_reader_finds_the_same_tensors(tmp_path):
    model = FEW["olmoe-1b-7b"]
    (first, _) = sorted(write_stand_in(tmp_path / "model", model).glob("*.safetensors"))
    with safe_open(first, framework="pt") as file:
        assert len(file.keys()) == 1 + 3 * model.experts
        down = file.get_slice("model.layers.0.mlp.experts.63.down_proj.weight")
        assert (down.get_shape(), down.get_dtype()) == ([2048, 1024], "BF16")


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    with pytest.raises(InputError, match="exists"):
        write_stand_in(tmp_path, FEW["olmoe-1b-7b"])
    assert list(tmp_path.iterdir()) == []
