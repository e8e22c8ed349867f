"""Reading, copying and computing at once on CUDA: nothing is overwritten before its turn.

The pretended device carries out copies of another stream as late as it may: when they are waited
for. A buffer that is filled too early then shows in what is read.
"""

from pathlib import Path

import pytest
import torch
from sample_layouts import write_layout
from strict_backends import chosen_stream
from strict_device import strict
from torch import Tensor

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.checkpoint.slots import CudaSlots


def read(folder: Path, batch: int, device: str, rows: list[int] | None) -> dict[int, Tensor]:
    """Every matrix of gate and up, whose bytes may be shared, by position."""
    index = open_index(str(folder))
    found = {}
    experts = index.experts["gate"] + index.experts["up"]
    with ExpertReader(experts, batch, device=device, rows=rows) as reader:
        for chunk in reader.batches():
            assert chunk.weights.device.type == device
            found.update(zip(chunk.positions, chunk.weights.cpu().clone(), strict=True))
            chunk.weights.zero_()
    return found


@pytest.mark.parametrize("kind", ["B", "C", "E", "fp8"])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("rows", [None, [3, 0, 1]], ids=["whole", "rows"])
def test_every_batch_is_what_was_stored(
    tmp_path: Path, kind: str, batch: int, rows: list[int] | None
) -> None:
    folder = write_layout(tmp_path / "model", kind)
    expected = read(folder, batch, "cpu", rows)
    with strict("cuda"):
        found = read(folder, batch, "cuda", rows)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[position], expected[position]) for position in expected)


def test_a_buffer_is_filled_again_once_its_bytes_have_left(monkeypatch) -> None:
    landed: list[int] = []
    with strict("cuda"):
        slots = CudaSlots(1, 4, torch.device("cuda"))
        monkeypatch.setattr(slots, "_landed", _Noting(landed))
        for value in range(5):  # and the consumer takes none of them
            slots.to_fill(None).fill_(value)
            slots.filled()
        assert landed == [0, 1, 2]  # the last two may still be on their way
        slots.close()
    assert landed == [0, 1, 2, 3, 4]


class _Noting:
    """Takes copies and notes the first byte of each when it is carried out."""

    def __init__(self, landed: list[int]) -> None:
        self._landed = landed

    def copy_(self, source: Tensor, non_blocking: bool) -> None:
        stream = chosen_stream()
        assert non_blocking
        assert stream is not None
        stream.defer(lambda: self._landed.append(int(source[0, 0])))
