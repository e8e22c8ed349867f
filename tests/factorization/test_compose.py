"""Mixtures of atoms against float64 sums, from tiles and atom by atom."""

import pytest
import torch

from globe_stream.factorization.compose import compose, compose_sparse
from globe_stream.kernels.workspace import Workspace
from globe_stream.store import arrays
from globe_stream.store.bank import StoredBank
from globe_stream.store.tiles import Tiles

B, R, D, M = 4, 5, 30, 6


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("spilled", [False, True])
def test_a_batch_is_the_sum_of_weighted_atoms(tmp_path, rows, spilled):
    codes, bank = normal(B, M), normal(M, R, D, seed=1)
    tiles = Tiles((M, R, D), rows, path=tmp_path / "bank" if spilled else None)
    tiles.put_items(0, bank)
    mixtures = compose(codes, tiles, Workspace())
    expected = torch.einsum("bm,mrd->brd", codes.double(), bank.double())
    torch.testing.assert_close(mixtures.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_expert_is_the_sum_of_the_atoms_that_it_names(dtype):
    bank = normal(M, R, D, seed=1).to(dtype)
    indices, values = torch.tensor([1, 2, 5]), torch.tensor([0.5, 2.0, 0.25])
    asked = []

    def atom(number):
        asked.append(number)
        return bank[number]

    out = torch.full((R, D), 9.0)
    mixture = compose_sparse(indices, values, atom, out)
    assert mixture is out
    assert asked == [1, 2, 5]
    expected = torch.einsum("j,jrd->rd", values.double(), bank[indices].double())
    torch.testing.assert_close(mixture.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("resident", [True, False])
def test_one_expert_from_a_stored_bank_whose_atoms_share_a_buffer(tmp_path, resident):
    bank = normal(M, R, D, seed=1)
    arrays.write(tmp_path / "bank", bank)
    indices, values = torch.tensor([0, 3, 4]), torch.tensor([1.5, 0.5, 1.0])
    with StoredBank(tmp_path / "bank", resident=resident) as stored:
        mixture = compose_sparse(indices, values, stored.atom, torch.empty(R, D))
    torch.testing.assert_close(mixture, torch.einsum("j,jrd->rd", values, bank[indices]))


def test_an_expert_without_atoms_is_zero():
    empty = torch.tensor([], dtype=torch.int32)
    mixture = compose_sparse(empty, torch.tensor([]), pytest.fail, torch.full((R, D), 3.0))
    assert not mixture.any()
