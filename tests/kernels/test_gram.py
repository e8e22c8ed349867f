"""Gram accumulation against numpy in float64."""

import numpy as np
import pytest
import torch

from globe_stream.errors import InputError
from globe_stream.kernels.gram import accumulate_gram, fix_signs, normalized


def blocks(shape, pieces, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(*shape, generator=generator).to(dtype)
    return whole, whole.split(shape[1] // pieces, dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(5, 12), (600, 90), (40, 9001)])
def test_matches_numpy(rows, columns, dtype):
    whole, parts = blocks((rows, columns), 3, dtype)
    total = torch.zeros(rows, rows, dtype=torch.float64)
    for part in parts:
        accumulate_gram(total, part)
    exact = whole.double().numpy()
    expected = exact @ exact.T
    rounding = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    bound = rounding * np.sqrt(columns) * np.abs(expected).max()
    assert np.abs(total.numpy() - expected).max() <= bound
    assert torch.equal(total, total.T)


def test_long_reductions_keep_their_accuracy_in_float32():
    whole, parts = blocks((6, 300_000), 3, torch.float32)
    whole += 3  # a common part, on which float32 sums lose the most
    total = torch.zeros(6, 6)
    for part in parts:
        accumulate_gram(total, part)
    expected = (whole.double() @ whole.double().T).numpy()
    assert np.abs(total.numpy() / expected - 1).max() < 3e-6


def test_signs_make_the_largest_entry_of_every_column_positive():
    vectors = blocks((12, 5), 1, torch.float64)[0]
    fixed = fix_signs(vectors)
    assert torch.equal(fixed.abs(), vectors.abs())
    assert torch.equal(fixed.amax(0), vectors.abs().amax(0))
    assert torch.equal(fix_signs(-vectors), fixed)


def test_normalised_is_the_cosine_matrix():
    whole, _ = blocks((8, 15), 1, torch.float64)
    scaled, norms = normalized(whole @ whole.T)
    unit = whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scaled, unit @ unit.T)
    torch.testing.assert_close(norms, whole.norm(dim=1))
    assert bool((scaled.diagonal() == 1).all())


def test_zero_proxies_are_named():
    gram = torch.eye(9, dtype=torch.float64)
    gram[4, 4] = 0
    gram[7, 7] = torch.nan
    with pytest.raises(InputError, match=r"2 proxies .* \(positions 4, 7\)"):
        normalized(gram)


def test_is_deterministic():
    whole, _ = blocks((600, 5000), 1, torch.float32)
    totals = [torch.zeros(600, 600, dtype=torch.float64) for _ in range(2)]
    for total in totals:
        accumulate_gram(total, whole)
    assert torch.equal(*totals)
