"""Codes as supports and values."""

import pytest
import torch

from globe_stream.errors import GlobeError
from globe_stream.io.records import Record
from globe_stream.store import codes
from globe_stream.store.run import Run


def sparse(n=9, m=7, kept=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, m, generator=generator)
    dense[torch.rand(n, m, generator=generator) > kept] = 0
    dense[3] = 0  # an expert without any atom
    return dense


@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
def test_pack_and_unpack_are_inverse(kept):
    dense = sparse(kept=kept)
    packed = codes.pack(dense)
    assert int(packed["count"].sum()) == len(packed["indices"]) == len(packed["values"])
    assert torch.equal(codes.unpack(**packed, bases=7), dense)


def test_packed_form():
    dense = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    packed = {name: values.tolist() for name, values in codes.pack(dense).items()}
    assert packed == {"count": [2, 0, 1], "indices": [1, 3, 0], "values": [2.0, 1.0, 3.0]}


def test_codes_in_a_run(tmp_path):
    dense = sparse()
    with Run.create(tmp_path / "run", Record()) as run:
        run.commit({"up": Record()}, codes.named("up/layers-000-003", dense))
        assert torch.equal(codes.load(run, "up/layers-000-003", 7), dense)
        with pytest.raises(GlobeError, match="gate/codes/count"):
            codes.load(run, "gate", 7)
