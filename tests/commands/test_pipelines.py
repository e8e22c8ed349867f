"""The recipes for published models: parsed and planned on stand-ins of the real shapes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import slow

import globe_stream
from globe_stream.commands.plan import plan
from globe_stream.commands.recipe import load_recipe, packaged_recipe
from globe_stream.formatting import parse_size
from globe_stream.synthetic.stand_in import STAND_INS, write_stand_in

FOLDER = Path(globe_stream.__file__).parents[1] / "pipelines"
SYNTHETIC = {"demo", "ci"}
STANDS_FOR = {
    **{name: name for name in ("qwen1.5-moe-a2.7b", "olmoe-1b-7b", "qwen3-30b-a3b", "gpt-oss-20b")},
    "qwen1.5-moe-one-layer": "qwen1.5-moe-a2.7b",
    "deepseek-v3-layers": "deepseek-v3",
}
ESTIMATE = re.compile(
    r"An epoch reads ([\d.]+) GiB and takes ([\d.]+) TFLOP: .* all of them, "
    r"([\d.]+) h on an Apple M2\n.* and ([\d.]+) h on 8 server cores"
)
MACHINES = ((1.8e12, 1.5e9), (0.4e12, 1e9))  # operations and bytes read a second


def test_every_recipe_is_valid_and_has_a_model():
    names = {path.stem for path in FOLDER.glob("*.toml")}
    assert names == SYNTHETIC | set(STANDS_FOR)
    for name in SYNTHETIC:
        assert packaged_recipe(name).synth is not None
    for name, stands_for in STANDS_FOR.items():
        assert packaged_recipe(name).model == STAND_INS[stands_for].model


QUICK = "qwen1.5-moe-one-layer"


@pytest.mark.parametrize("name", [n if QUICK in n else slow(n) for n in sorted(STANDS_FOR)])
def test_recipes_for_published_models_can_be_planned(tmp_path, name):
    recipe = load_recipe(FOLDER / f"{name}.toml")
    model = STAND_INS[STANDS_FOR[name]]
    if recipe.selection.layers is not None:  # shards of later layers would not be opened
        model = replace(model, layers=int(recipe.selection.layers.split(":")[1]))
    folder = write_stand_in(tmp_path / "model", model)
    found = plan(str(folder), recipe.selection, recipe.seed, recipe.train, recipe.runtime)
    assert found.least_memory_bytes < parse_size(recipe.runtime.memory)
    assert all(group.parameter_ratio < 0.9 for group in found.units.values())
    told = ESTIMATE.search((FOLDER / f"{name}.toml").read_text())
    assert told is not None, "the header says what a run takes"
    read, operations, *hours = map(float, told.groups())
    assert found.epoch_bytes_read / 2**30 == pytest.approx(read, abs=0.06)
    assert found.epoch_flops / 1e12 == pytest.approx(operations, rel=0.05)
    for told_hours, (rate, disk) in zip(hours, MACHINES, strict=True):
        seconds = found.epoch_flops / rate + found.epoch_bytes_read / disk
        took = found.passes * seconds / 3600
        assert took == pytest.approx(told_hours, abs=min(0.1, 0.5 * told_hours))
