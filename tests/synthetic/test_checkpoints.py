"""Synthetic checkpoints: readable, repeatable, planted as promised, written in little memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.config import SyntheticModel
from globe_stream.errors import InputError
from globe_stream.synthetic.checkpoints import write_synthetic

SIZES: dict[str, Any] = {"layers": 2, "experts": 5, "hidden": 24, "intermediate": 16}


def _weights(root: Path, family: str = "up") -> torch.Tensor:
    return torch.stack([read_expert(e) for e in open_index(str(root)).experts[family]])


@pytest.mark.parametrize(("name", "dtype"), [("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32")])
def test_is_read_as_qwen2_moe(tmp_path: Path, name: str, dtype: str) -> None:
    report = write_synthetic(tmp_path / "m", SyntheticModel(**SIZES, dtype=name), shard_bytes=4000)
    index = open_index(str(tmp_path / "m"))
    summary = index.summary()
    assert summary.model_type == "qwen2_moe"
    assert set(summary.families) == {"up", "gate"}
    for family in summary.families.values():
        assert (family.experts, family.p, family.d) == (10, 16, 24)
        assert family.dtype == dtype
    assert report.shards == summary.shards > 1
    assert report.bytes == summary.bytes == sum(p.stat().st_size for p in index.files)
    assert AutoConfig.from_pretrained(tmp_path / "m").num_experts == 5
    tensors = {name for path in index.files for name in load_file(path)}
    weight_map = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())["weight_map"]
    assert tensors == set(weight_map)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = SyntheticModel(**SIZES, planted_bases=3, noise=0.1, seed=seed)
        write_synthetic(tmp_path / name, model)
    first, second, third = (_weights(tmp_path / name) for name in "abc")
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_experts_differ_and_do_not_depend_on_the_number_of_layers(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a", SyntheticModel(**SIZES))
    write_synthetic(tmp_path / "b", SyntheticModel(**(SIZES | {"layers": 3})))
    first = torch.cat([_weights(tmp_path / "a", family) for family in ("up", "gate")]).flatten(1)
    assert torch.equal(_weights(tmp_path / "b")[:10], _weights(tmp_path / "a"))
    cosines = torch.corrcoef(first) - torch.eye(len(first))
    assert cosines.abs().max() < 0.5
    assert first.std().item() == pytest.approx(24**-0.5, rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_planted_rows_lie_in_the_atoms_span(tmp_path: Path, noise: float) -> None:
    """All experts of a family are made of 2 atoms of rank 3, so their rows span 6 dimensions."""
    model = SyntheticModel(**SIZES, planted_bases=2, planted_rank=3, noise=noise, dtype="fp32")
    write_synthetic(tmp_path / "m", model)
    rows = _weights(tmp_path / "m").reshape(-1, 24)
    energy = torch.linalg.svdvals(rows.double()).square()
    outside = float(energy[6:].sum() / energy.sum())
    expected = noise**2 / (1 + noise**2) * (24 - 6) / 24
    assert outside == pytest.approx(expected, rel=0.1, abs=1e-10)
    assert float(rows.square().mean()) == pytest.approx((1 + noise**2) / 24, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers 0 is out of range: at least 1"),
        ({"dtype": "int4"}, "dtype 'int4' is not known"),
        ({"noise": 0.1}, "need planted_bases"),
        ({"planted_bases": 0}, "planted_bases 0 is out"),
        ({"planted_bases": 2, "noise": -1.0}, "noise -1.0 is out"),
        ({"planted_bases": 2, "planted_rank": 17}, "between 1 and 16"),
        ({"experts": 10**15}, "disk is too full"),
    ],
)
def test_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if "experts" in changes:
        changes = {"hidden": 2**24, "intermediate": 2**24}
    with pytest.raises(InputError, match=message):
        write_synthetic(tmp_path / "m", SyntheticModel(**(SIZES | changes)))
    assert not any(tmp_path.rglob("*.*"))


def test_refuses_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        write_synthetic(tmp_path, SyntheticModel(**SIZES))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


PEAK = """
import sys
from pathlib import Path
from globe_stream.config import SyntheticModel
from globe_stream.synthetic.checkpoints import write_synthetic
class Peaks:
    value = 0
    def bar(self, title, total, done=0): return self
    def advance(self, done, note, memory): self.value = max(self.value, memory)
    def close(self): pass
small, large = Peaks(), Peaks()
sizes = dict(layers=1, hidden=1024, intermediate=512)
write_synthetic(Path(sys.argv[1]) / "small", SyntheticModel(experts=4, **sizes), progress=small)
write_synthetic(Path(sys.argv[1]) / "large", SyntheticModel(experts=80, **sizes), progress=large)
print((large.value - small.value) / 2**20)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 8  # MiB, of 160 MiB written; an expert in float32 takes 2


PASS = """
import sys, psutil, torch
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import ExpertReader
def rss(): return psutil.Process().memory_info().rss
def peak(experts):
    with ExpertReader(experts, 4) as reader:
        return max(rss() for batch in reader.batches())
experts = open_index(sys.argv[1]).experts["up"]
peak(experts[:1])
before = rss()
price = ExpertReader.buffer_bytes(experts[0], 4)
print((peak(experts[:4]) - before) / price, (peak(experts) - before) / price)
"""


@pytest.mark.slow
def test_a_pass_takes_the_memory_it_says(tmp_path: Path) -> None:
    """In a fresh process; four experts are a fifth of what a pass reads."""
    model = SyntheticModel(layers=1, experts=20, hidden=2048, intermediate=1024)
    write_synthetic(tmp_path / "m", model)
    done = subprocess.run(
        [sys.executable, "-c", PASS, str(tmp_path / "m")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    one_batch, all_batches = map(float, done.stdout.split())
    assert 0.9 < one_batch < 1.1
    assert 0.9 < all_batches < 1.1
