"""The trellis code against its formula and against every path there is."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm

from globe_stream.kernels.trellis import SHAPES, codebook, decode, encode


def value(numbers: tuple[int, ...], place: int, bits: int) -> float:
    """The value of the element at `place` of a row, by the definition."""
    length, stretch, multiplier = SHAPES[bits]
    history = 0
    for step in range(1, length + 1):
        history = history << bits | (numbers[place - step] if place >= step else 0)
    size = 2 ** (bits * length)
    where = (numbers[place] * size + multiplier * history % size + 0.5) / (size * 2**bits)
    return stretch * float(norm.ppf(where))


@pytest.mark.parametrize("bits", SHAPES)
def test_values_are_those_of_the_formula(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    numbers = torch.randint(0, 2**bits, (3, 11), generator=generator).to(torch.uint8)
    expected = [[value(tuple(row), place, bits) for place in range(11)] for row in numbers.tolist()]
    np.testing.assert_allclose(decode(numbers, bits).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(decode(numbers[0], bits), decode(numbers, bits)[0])


@pytest.mark.parametrize(("bits", "count"), [(2, 5), (3, 3), (4, 2)])
def test_the_path_found_is_the_nearest_of_all(bits: int, count: int) -> None:
    values = torch.randn(6, count, generator=torch.Generator().manual_seed(1))
    paths = torch.tensor(list(itertools.product(range(2**bits), repeat=count))).to(torch.uint8)
    possible = decode(paths, bits).double()
    least = torch.cdist(values.double(), possible).square().min(1).values
    found = (decode(encode(values, bits), bits).double() - values).square().sum(1)
    torch.testing.assert_close(found, least, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bits", "count"), [(2, 4), (3, 3), (4, 2)])
def test_the_path_after_given_numbers_is_the_nearest_of_all(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    values, length = torch.randn(6, count, generator=generator), SHAPES[bits][0]
    before = torch.randint(0, 2**bits, (6, length), generator=generator).to(torch.uint8)
    paths = torch.tensor(list(itertools.product(range(2**bits), repeat=count))).to(torch.uint8)
    found = encode(values, bits, before)
    for row in range(6):
        whole = torch.cat((before[row].expand(len(paths), -1), paths), 1)
        errors = (decode(whole, bits)[:, length:] - values[row]).square().sum(1)
        chosen = decode(torch.cat((before[row], found[row])), bits)[length:]
        assert float((chosen - values[row]).square().sum()) == pytest.approx(
            float(errors.min()), rel=1e-5
        )


@pytest.mark.parametrize(("bits", "error", "scalar"), [(2, 0.094, 0.1175), (3, 0.0265, 0.0345)])
def test_error_of_a_normal_variable(bits: int, error: float, scalar: float) -> None:
    """Well below the best fixed levels (Max 1960)."""
    values = torch.randn(40, 300, generator=torch.Generator().manual_seed(3))
    found = float((decode(encode(values, bits), bits) - values).square().mean())
    assert found < error < 0.81 * scalar


def test_rows_do_not_depend_on_how_they_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(9, 20, generator=torch.Generator().manual_seed(4))
    whole = encode(values, 3)
    monkeypatch.setattr("globe_stream.kernels.trellis._WORK_BYTES", 2 * 20 * 64)
    assert torch.equal(encode(values, 3), whole)


@pytest.mark.parametrize("bits", SHAPES)
def test_a_codebook_is_symmetric_and_holds_each_place_once(bits: int) -> None:
    found = codebook(bits).flatten().sort().values
    assert len(torch.unique(found)) == len(found)
    torch.testing.assert_close(found, -found.flip(0), rtol=1e-5, atol=1e-5)
