"""Digests: of the stored bytes alone, whatever the layout and the batch, and compared when read."""

from pathlib import Path

import pytest
import torch
from sample_layouts import KINDS, write_layout
from tiny_files import QWEN, qwen_tensors, write_checkpoint

from globe_stream.checkpoint.digests import digest_of
from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.errors import InputError


def _digests(experts: tuple[ExpertMatrix, ...], batch: int) -> list[bytes]:
    found = [b""] * len(experts)
    with ExpertReader(experts, batch) as reader:
        for part in reader.batches():
            assert part.digests is not None
            for position, digest in zip(part.positions, part.digests, strict=True):
                found[position] = digest.numpy().tobytes()
    return found


def _own_bytes(expert: ExpertMatrix) -> list[int]:
    """Offsets in the file of every byte of the expert's weights, by the definition."""
    region = expert.storage.weight
    places = torch.arange(region.block_bytes // region.itemsize).view(region.major, region.minor)
    rows = region.major_start + region.major_step * torch.arange(region.rows)
    columns = region.minor_start + region.minor_step * torch.arange(region.columns)
    items = places[rows][:, columns].reshape(-1) * region.itemsize + region.start
    return (items[:, None] + torch.arange(region.itemsize)).reshape(-1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_of_its_own_bytes_and_no_others(tmp_path: Path, kind: str) -> None:
    folder = write_layout(tmp_path / "m", kind)
    index = open_index(str(folder))
    everyone = [expert for family in index.experts.values() for expert in family]
    before = {e: d for f in index.experts.values() for e, d in zip(f, _digests(f, 3), strict=True)}
    for chosen in (everyone[0], everyone[len(everyone) // 2], everyone[-1]):
        own = _own_bytes(chosen)
        path = chosen.storage.weight.path
        content = bytearray(path.read_bytes())
        for place in (own[0], own[len(own) // 2], own[-1]):
            content[place] ^= 1
            path.write_bytes(content)
            now = {
                e: d for f in index.experts.values() for e, d in zip(f, _digests(f, 2), strict=True)
            }
            assert [e for e in everyone if now[e] != before[e]] == [chosen]
            content[place] ^= 1
        path.write_bytes(content)


def test_no_batch_changes_them(tmp_path: Path) -> None:
    index = open_index(str(write_checkpoint(tmp_path, qwen_tensors(), QWEN)))
    assert _digests(index.experts["up"], 1) == _digests(index.experts["up"], 5)
    assert len(set(_digests(index.experts["up"], 1))) == len(index.experts["up"])


def test_pieces_of_a_large_part_are_one() -> None:
    values = torch.randn(700, 1200)
    plain = digest_of([values[:, ::2].contiguous()])
    assert torch.equal(digest_of([values[:, ::2]]), plain)
    assert torch.equal(digest_of([values[:, ::2].contiguous().T]), plain)
    assert not torch.equal(digest_of([values[:, 1::2]]), plain)


def test_an_expert_that_changed_is_named(tmp_path: Path) -> None:
    index = open_index(str(write_checkpoint(tmp_path, qwen_tensors(), QWEN)))
    experts = index.experts["gate"]
    with ExpertReader(experts, 6) as reader:
        batch = next(reader.batches())
        expected = torch.zeros(6, 16, dtype=torch.uint8)
        expected[batch.positions] = batch.digests
    weight = experts[4].storage.weight
    content = bytearray(weight.path.read_bytes())
    content[weight.offset + 3] ^= 64
    weight.path.write_bytes(content)
    with (
        ExpertReader(experts, 2, expected=expected) as reader,
        pytest.raises(InputError, match="is not what it was") as caught,
    ):
        list(reader.batches())
    said = str(caught.value)
    assert said.startswith(f"{weight.path}: tensor {weight.tensor}: gate of layer 1, expert 1 is")
    with ExpertReader(experts, 2, rows=[0, 1], expected=expected) as reader:
        assert all(part.digests is None for part in reader.batches())
