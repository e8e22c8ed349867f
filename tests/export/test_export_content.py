"""No tensor is lost: shards of one name in two folders, and exports against index and source."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sample_runs import make_run

from globe_stream.commands.verify import verify
from globe_stream.errors import GlobeError
from globe_stream.export import dense
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.io.files import sha256_of

INDEX = "model.safetensors.index.json"


@pytest.fixture
def nested(model: Path, tmp_path: Path) -> Path:
    """The model with its tensors dealt to shards of one name in two folders, and a third beside."""
    folder = tmp_path / "nested"
    shutil.copytree(model, folder)
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    weight_map = {}
    for number, name in enumerate(("a/model.safetensors", "b/model.safetensors", "c.safetensors")):
        part = dict(list(tensors.items())[number::3])
        (folder / name).parent.mkdir(exist_ok=True)
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, f"./{name}" if number == 1 else name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _tensors(folder: Path) -> dict[str, bytes]:
    found = {}
    for file in folder.rglob("*.safetensors"):
        loaded = load_file(file)
        assert not found.keys() & loaded.keys()
        found |= {name: values.float().numpy().tobytes() for name, values in loaded.items()}
    return found


@pytest.mark.slow
def test_shards_of_one_name_in_two_folders(model: Path, nested: Path, tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", model)
    run = make_run(tmp_path / "run", nested)
    export_dense(plain, tmp_path / "expected")
    out = tmp_path / "out"
    export_dense(run, out)
    names = {file.relative_to(out).as_posix() for file in out.rglob("*.safetensors")}
    assert names == {"a/model.safetensors", "b/model.safetensors", "c.safetensors"}
    assert _tensors(out) == _tensors(tmp_path / "expected")
    weight_map = json.loads((out / INDEX).read_text())["weight_map"]
    assert {name: (out / file).is_file() for name, file in weight_map.items()} == dict.fromkeys(
        _tensors(nested), True
    )
    assert verify(out).problems == ()
    assert export_dense(run, out).note.startswith("It was complete already.")


def test_a_tensor_of_the_source_that_is_left_out_is_not_published(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dense.plan_rewrite

    def forgetful(*arguments: object) -> object:
        plan = real(*arguments)  # type: ignore[arg-type]
        return dense.Rewrite(plan.shards[1:], plan.config, plan.dequantised, plan.quantised)

    monkeypatch.setattr(dense, "plan_rewrite", forgetful)
    with pytest.raises(GlobeError, match=r"tensor .* of the source is missing, and \d+ more"):
        export_dense(run, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert not (tmp_path / "out" / INDEX).exists()


@pytest.mark.parametrize("change", ["removed", "renamed", "moved"])
def test_an_index_that_says_otherwise_is_found(run: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    export_dense(run, out)
    index = json.loads((out / INDEX).read_text())
    weights = index["weight_map"]
    first, *_, last = sorted(weights, key=lambda name: (weights[name], name))
    if change == "moved":
        weights[first] = weights[last]
    else:
        file = weights.pop(first)
        if change == "renamed":
            weights["another"] = file
    (out / INDEX).write_text(json.dumps(index))
    problems = verify(out).problems
    said = "leaves out tensor" if change == "removed" else "where it is not"
    assert any(said in problem for problem in problems)


def test_a_lost_tensor_is_found_though_the_sums_agree(run: Path, tmp_path: Path) -> None:
    """Index, manifest and file changed together: the list of tensors still tells."""
    out = tmp_path / "out"
    export_factors(run, out)
    (shard, *_) = sorted(out.glob("adapters-*.safetensors"))
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, shard, {"format": "pt"})
    place = out / "adapters.safetensors.index.json"
    index = json.loads(place.read_text())
    del index["weight_map"][lost]
    place.write_text(json.dumps(index))
    manifest = json.loads((out / "globe_export.json").read_text())
    for name in (shard.name, place.name):
        manifest["files"][name] = {
            "bytes": (out / name).stat().st_size,
            "sha256": sha256_of(out / name),
        }
    (out / "globe_export.json").write_text(json.dumps(manifest))
    (problem,) = verify(out).problems
    assert "tensors, not the" in problem
