"""A checkpoint whose contents changed under a run: every later pass names the expert that did."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import open_index

TRAIN = ("--epochs", 1, "--warmup-epochs", 1)


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    return shutil.copytree(checkpoint, tmp_path / "own")


def flip(expert: ExpertMatrix) -> None:
    """Change the lowest bit of one element: neither the header nor the size tells."""
    weight = expert.storage.weight
    content = bytearray(weight.path.read_bytes())
    content[weight.offset + 10 * weight.itemsize] ^= 1
    weight.path.write_bytes(content)


def named(told: object, expert: ExpertMatrix) -> None:
    assert told.code == 2, told.err  # type: ignore[attr-defined]
    last = told.err.strip().splitlines()[-1]  # type: ignore[attr-defined]
    assert f"{expert.storage.weight.path}: tensor {expert.storage.weight.tensor}" in last
    assert f"{expert.name} is not what it was when the run was seeded" in last


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_one_flipped_bit_is_named_by_every_later_pass(
    own: Path, tmp_path: Path, tell: Callable[..., object]
) -> None:
    run = tmp_path / "run"
    index = open_index(str(own))
    assert tell("seed", own, "--run", run).code == 0  # type: ignore[attr-defined]
    first, other = index.experts["up"][3], index.experts["gate"][20]
    flip(first)
    named(tell("train", run, *TRAIN), first)
    flip(first)
    assert tell("train", run, *TRAIN).code == 0  # type: ignore[attr-defined]
    flip(other)
    named(tell("train", run, "--epochs", 2, "--warmup-epochs", 1), other)
    for kind in ("factors", "dense"):
        named(tell("export", run, "--out", tmp_path / kind, "--format", kind), other)
        assert not list((tmp_path / kind).glob("*.index.json"))
    flip(other)
    for kind in ("factors", "dense"):
        assert tell("export", run, "--out", tmp_path / kind, "--format", kind).code == 0  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_change_between_the_passes_of_seeding(
    own: Path,
    tmp_path: Path,
    tell: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The measuring pass compares with the first; the same command continues once it is mended."""
    from globe_stream.seeding.pipeline import Seeding

    expert = open_index(str(own)).experts["up"][7]
    real = Seeding.run_stage

    def then_flip(self: Seeding, stage: str) -> None:
        real(self, stage)
        if stage == "atoms" and self.group.key == "up":
            flip(expert)

    monkeypatch.setattr(Seeding, "run_stage", then_flip)
    named(tell("seed", own, "--run", tmp_path / "run"), expert)
    monkeypatch.undo()
    flip(expert)
    assert tell("seed", own, "--run", tmp_path / "run").code == 0  # type: ignore[attr-defined]
