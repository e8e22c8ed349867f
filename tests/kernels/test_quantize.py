"""Quantised values, their packing, and the rounding that makes up for errors."""

import numpy as np
import pytest
import torch

from globe_stream.kernels.quantize import (
    dequantize,
    group_count,
    nearest_places,
    orthonormal_rows,
    pack,
    quantize,
    quantize_atoms,
    unpack,
)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 8, 99])
def test_packing_is_undone_and_as_small_as_it_says(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    numbers = torch.randint(0, 2**bits, (3, count), generator=generator).to(torch.uint8)
    packed = pack(numbers, bits)
    assert packed.shape == (3, bits, -(-count // 8))
    assert packed.dtype == torch.uint8
    planes = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")[..., :count]
    expected = (planes * (1 << np.arange(bits))[:, None]).sum(1)
    assert np.array_equal(expected, numbers.numpy())
    assert torch.equal(unpack(packed, count), numbers)


@pytest.mark.parametrize(("bits", "error"), [(8, 6e-5), (6, 1e-3), (4, 0.0075), (3, 0.0265)])
def test_error_of_a_normal_variable(bits: int, error: float) -> None:
    """At 4 and 3 bits below what is possible for a scalar: 0.0095 and 0.0345."""
    values = _normal(50, 640)
    numbers, scales = quantize(values, bits)
    assert scales.shape == (50, 10)
    assert scales.dtype == torch.bfloat16
    found = dequantize(numbers, scales, bits)
    assert float((found - values).square().mean()) < error


@pytest.mark.parametrize(("width", "groups"), [(1, 1), (99, 1), (130, 2), (192, 3), (1056, 16)])
def test_rows_of_any_width(width: int, groups: int) -> None:
    """Groups are as large as GROUP or larger, so that scales cost no more than they should."""
    values = _normal(4, width)
    numbers, scales = quantize(values, 8)
    assert group_count(width) == groups
    assert numbers.shape == (4, width)
    assert scales.shape == (4, groups)
    torch.testing.assert_close(dequantize(numbers, scales, 8), values, rtol=0, atol=0.02)


@pytest.mark.parametrize("bits", range(5, 9))
def test_places_are_those_of_a_search(bits: int) -> None:
    """At the middles between levels and one bit to either side of them too."""
    table = torch.linspace(-1, 1, 2**bits)
    middles, far = (table[1:] + table[:-1]) / 2, torch.tensor(3e38)
    beside = [torch.nextafter(middles, sign * far) for sign in (-1, 1)]
    values = torch.cat((_normal(50_000), table, middles, *beside, far[None], -far[None]))
    assert torch.equal(nearest_places(values, table).long(), torch.bucketize(values, middles))


def test_zeros_stay_small() -> None:
    numbers, scales = quantize(torch.zeros(2, 64), 4)
    assert dequantize(numbers, scales, 4).abs().max() < 1e-30


def test_mixtures_of_compensated_atoms_are_nearer() -> None:
    codes = torch.rand(200, 12, generator=torch.Generator().manual_seed(2))
    atoms = _normal(12, 5, 64)
    plain = dequantize(*quantize(atoms, 4), 4)
    made_up = dequantize(*quantize_atoms(atoms.clone(), codes.T @ codes, 4), 4)
    errors = [
        float(torch.einsum("nj,jrd->nrd", codes, found - atoms).square().mean())
        for found in (plain, made_up)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_rows_of_atoms_do_not_depend_on_each_other() -> None:
    codes = torch.rand(50, 6, generator=torch.Generator().manual_seed(2))
    atoms = _normal(6, 7, 64)
    moment = codes.T @ codes
    whole = dequantize(*quantize_atoms(atoms.clone(), moment, 3), 3)
    part = dequantize(*quantize_atoms(atoms[:, 2:5].clone(), moment, 3), 3)
    assert torch.equal(whole[:, 2:5], part)


def test_orthonormal_rows_span_the_same_space() -> None:
    hidden = _normal(3, 9, 30) * torch.logspace(-1, 1, 9)[:, None]
    rows = orthonormal_rows(hidden)
    for matrix, found in zip(hidden.double().numpy(), rows.double().numpy(), strict=True):
        triangular = np.linalg.cholesky(matrix @ matrix.T)
        np.testing.assert_allclose(found, np.linalg.solve(triangular, matrix), atol=2e-3)
