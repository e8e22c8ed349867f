"""Norms, scales and coherence against explicit atoms."""

import pytest
import torch

from globe_stream.kernels.atoms import (
    coherence,
    squared_norms,
    unit_mixture_scales,
    unit_scales,
)


@pytest.fixture
def bank():
    torch.manual_seed(0)
    return torch.randn(5, 6, 8) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]).reshape(-1, 1, 1)


def test_tiles_normalise_like_the_whole_bank(bank):
    expected = bank / bank.norm(dim=(1, 2), keepdim=True)
    squares = squared_norms(bank[:, :2]) + squared_norms(bank[:, 2:])
    scales = unit_scales(squares)
    torch.testing.assert_close(bank * scales[:, None, None].float(), expected)


def test_a_zero_atom_is_not_scaled(bank):
    bank[2] = 0
    assert unit_scales(squared_norms(bank))[2] == 1


def test_unit_mixtures(bank):
    codes = torch.rand(4, 5, dtype=torch.float64)
    codes[3] = 0
    flat = bank.flatten(1).double()
    scales = unit_mixture_scales(codes, flat @ flat.T)
    norms = ((codes * scales[:, None]) @ flat).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64))


def test_coherence_matches_explicit_atoms(bank):
    unit = bank.flatten(1).double()
    unit = unit / unit.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T - torch.eye(5, dtype=torch.float64)
    got = coherence(bank.flatten(1).double() @ bank.flatten(1).double().T)
    assert got.off_diagonal_norm == pytest.approx(float(cosines.norm()))
    assert got.off_diagonal_max == pytest.approx(float(cosines.abs().max()))


def test_coherence_limits():
    assert coherence(torch.eye(4)).off_diagonal_norm == 0
    twins = torch.ones(2, 2, dtype=torch.float64)
    assert coherence(twins).off_diagonal_max == pytest.approx(1.0)
    assert coherence(torch.ones(1, 1)).off_diagonal_max == 0
