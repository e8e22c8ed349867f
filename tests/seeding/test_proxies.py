"""Proxies, their Gram matrix, atoms from them, and the SVD baseline, against dense float64."""

import numpy as np
import pytest
import torch

from globe_stream.checkpoint.reader import Batch
from globe_stream.config import SeedConfig
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.factorization.svd_baseline import (
    MAX_OPERATIONS,
    MIN_EXPERTS,
    BaselineAccumulator,
    sampled_experts,
)
from globe_stream.kernels.gram import normalized
from globe_stream.seeding import proxies as proxy
from globe_stream.seeding.gram import ProxyOperator, build_bank, proxy_gram
from globe_stream.seeding.proxy_tiles import ProxyTiles
from globe_stream.store import arrays
from globe_stream.store.tiles import Tiles

N, P, D, R, M, ROWS = 13, 8, 11, 5, 4, 2
BY = Normalization(0.1, 0.7)
CPU = torch.device("cpu")


def experts():
    return torch.randn(N, P, D, generator=torch.Generator().manual_seed(0)) + 0.1


def normal_experts():
    return ((experts().double() - BY.mean) / BY.scale).numpy()


def spilled(tmp_path, dtype=torch.float32, rows=ROWS, name="proxies"):
    return Tiles((N, R, D), rows, dtype=dtype, path=tmp_path / name)


def gather(tiles, projector, rows=None, order=None, batch=3):
    whole = experts() if rows is None else experts()[:, rows]
    passing = proxy.ProxyAccumulator(tiles, projector, BY)
    order = list(range(N)) if order is None else order
    for first in range(0, N, batch):
        positions = order[first : first + batch]
        passing.update(Batch(positions, whole[positions].clone()))
    return tiles


def content(tiles):
    return tiles.items(0, tiles.shape[0]).double().numpy()


@pytest.mark.parametrize("kind", ["rows", "left_gram", "procrustes", "svd"])
def test_the_energy_captured_is_that_of_the_proxies(tmp_path, kind):
    """Every kind projects orthogonally, nearly or exactly: ||X_i||^2 is kept of ||W_i||^2."""
    normal = normal_experts()
    arrays = {
        "seed/row_energy": torch.from_numpy((normal**2).sum((0, 2))),
        "seed/left_gram": torch.from_numpy(left_gram()),
        "seed/procrustes_mean": torch.linalg.qr(torch.randn(D, R)).Q.T.contiguous(),
    }
    config = SeedConfig(row_selection="energy")
    projection = proxy.make_projection(kind, arrays.__getitem__, config, R, CPU)
    passing = proxy.ProxyAccumulator(spilled(tmp_path), projection.project, BY)
    whole = experts() if projection.rows is None else experts()[:, projection.rows]
    for first in range(0, N, 3):
        positions = list(range(first, min(first + 3, N)))
        passing.update(Batch(positions, whole[positions].clone()))
    kept = passing.energy / (normal**2).sum()
    if kind == "rows":
        expected = np.sort((normal**2).sum((0, 2)))[-R:].sum() / (normal**2).sum()
    elif kind == "left_gram":
        values = np.linalg.eigvalsh(left_gram())
        expected = values[-R:].sum() / values.sum()
    elif kind == "svd":
        expected = (np.linalg.svd(normal)[1][:, :R] ** 2).sum() / (normal**2).sum()
    else:
        mean = arrays["seed/procrustes_mean"].double().numpy()
        left = [np.linalg.svd(expert @ mean.T)[0][:, :R] for expert in normal]
        expected = sum(((u.T @ w) ** 2).sum() for u, w in zip(left, normal, strict=True))
        expected /= (normal**2).sum()
    if kind == "procrustes":  # rotations have singular values between 0.6 and 1.2, not of one
        assert 0.6**2 * expected < kept < 1.2**2 * expected
    else:
        assert kept == pytest.approx(expected, rel=1e-5)
    assert (projection.agreement is None) == (kind != "procrustes")


# -- rows ----------------------------------------------------------------------------------------


def test_energy_rows_are_the_strongest_ones():
    energy = torch.tensor([1.0, 5, 2, 9, 0, 5.5, 3, 4])
    assert proxy.select_rows("energy", energy, 3, seed=0) == [1, 3, 5]
    assert proxy.select_rows("energy", energy, 8, seed=0) == list(range(8))


@pytest.mark.parametrize(("p", "rank"), [(8, 3), (8, 8), (100, 7), (5, 1)])
def test_uniform_rows_are_a_regular_stride(p, rank):
    rows = proxy.select_rows("uniform", torch.zeros(p), rank, seed=0)
    assert len(set(rows)) == rank
    steps = np.diff([*rows, p + rows[0]])
    assert steps.max() - steps.min() <= 1


def test_random_rows_depend_on_the_seed_only():
    chosen = [proxy.select_rows("random", torch.arange(50.0) * k, 20, seed)
              for k, seed in ((1, 3), (2, 3), (1, 4))]  # fmt: skip
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(rows == sorted(set(rows)) and len(rows) == 20 for rows in chosen)


@pytest.mark.parametrize("kind", ["energy", "uniform", "random"])
def test_row_proxies_are_those_rows(tmp_path, kind):
    energy = torch.from_numpy((normal_experts() ** 2).sum((0, 2)))
    rows = proxy.select_rows(kind, energy, R, seed=1)
    tiles = gather(spilled(tmp_path), lambda weights: weights, rows)
    np.testing.assert_allclose(content(tiles), normal_experts()[:, rows], atol=1e-6)


# -- left Gram and SVD ---------------------------------------------------------------------------


def left_gram():
    return np.einsum("npd,nqd->pq", normal_experts(), normal_experts())


def test_the_left_basis_holds_the_most_energy():
    basis = proxy.left_basis(torch.from_numpy(left_gram()), R)
    values, vectors = np.linalg.eigh(left_gram())
    top = vectors[:, ::-1][:, :R]
    np.testing.assert_allclose((basis @ basis.T).numpy(), top @ top.T, atol=1e-5)
    np.testing.assert_allclose((basis.T @ basis).numpy(), np.eye(R), atol=1e-5)
    first = float(basis[:, 0].double() @ torch.from_numpy(left_gram()) @ basis[:, 0].double())
    assert first == pytest.approx(values[-1], rel=1e-5), "largest first"


def test_left_gram_proxies_are_the_basis_transposed_times_the_expert(tmp_path):
    basis = proxy.left_basis(torch.from_numpy(left_gram()), R)
    tiles = gather(spilled(tmp_path), proxy.left_gram_projector(basis))
    expected = np.einsum("pr,npd->nrd", basis.double().numpy(), normal_experts())
    np.testing.assert_allclose(content(tiles), expected, atol=1e-5)


def test_svd_proxies_are_scaled_right_singular_rows(tmp_path):
    tiles = gather(spilled(tmp_path), proxy.svd_projector(R))
    for found, expert in zip(content(tiles), normal_experts(), strict=True):
        _, values, right = np.linalg.svd(expert)
        np.testing.assert_allclose(found @ found.T, np.diag(values[:R] ** 2), atol=1e-3)
        signs = np.sign((found * right[:R]).sum(1))
        np.testing.assert_allclose(found, (signs * values[:R])[:, None] * right[:R], atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4, 13])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_proxies_do_not_depend_on_batch_order_or_tiling(tmp_path, batch, rows):
    basis = proxy.left_basis(torch.from_numpy(left_gram()), R)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2)).tolist()
    one = gather(spilled(tmp_path, name="one"), proxy.left_gram_projector(basis))
    other = gather(spilled(tmp_path, rows=rows, name="two"), proxy.left_gram_projector(basis),
                   order=order, batch=batch)  # fmt: skip
    np.testing.assert_allclose(content(one), content(other), atol=1e-6)


def test_proxies_are_kept_in_the_dtype_of_their_file(tmp_path):
    tiles = gather(spilled(tmp_path, torch.bfloat16), lambda weights: weights, list(range(R)))
    expected = torch.from_numpy(normal_experts()[:, :R]).bfloat16().double().numpy()
    np.testing.assert_allclose(content(tiles), expected, rtol=2**-8, atol=1e-6)
    checksums = 8 * N * len(tiles)
    assert (tmp_path / "proxies").stat().st_size == 2 * N * R * D + checksums


# -- Gram space ----------------------------------------------------------------------------------


def filled(tmp_path, dtype=torch.float32):
    return gather(spilled(tmp_path, dtype), lambda weights: weights, list(range(R)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proxy_gram_is_that_of_the_flat_proxies(tmp_path, dtype):
    tiles = filled(tmp_path, dtype)
    flat = content(tiles).reshape(N, -1)
    gram = proxy_gram(ProxyTiles(tiles), CPU)
    assert gram.dtype == torch.float64
    np.testing.assert_allclose(gram.numpy(), flat @ flat.T, atol=1e-4)


def test_the_operator_multiplies_like_the_normalised_gram(tmp_path):
    tiles = filled(tmp_path)
    gram, norms = normalized(proxy_gram(ProxyTiles(tiles), CPU))
    operator = ProxyOperator(ProxyTiles(tiles), CPU)
    assert operator.shape == (N, N)
    np.testing.assert_allclose(operator.norms.numpy(), norms.numpy(), rtol=1e-6)
    vectors = torch.randn(N, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    np.testing.assert_allclose(operator.matmul(vectors), gram @ vectors, atol=1e-5)


def test_atoms_are_group_combinations_of_group_proxies(tmp_path):
    tiles = filled(tmp_path)
    flat = content(tiles).reshape(N, -1)
    norms = np.linalg.norm(flat, axis=1)
    combination = torch.randn(N, M, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    bank = build_bank(ProxyTiles(tiles), torch.from_numpy(norms), combination, tmp_path / "bank")
    expected = combination.T.numpy() @ (flat / norms[:, None])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(content(bank).reshape(M, -1), expected, atol=1e-5)
    assert bank.bounds == tiles.bounds


# -- baseline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, P])
def test_the_baseline_is_truncation_by_numpy(rank):
    passing = BaselineAccumulator(rank, min(P, D))
    for first in range(0, N, 4):
        positions = list(range(first, min(first + 4, N)))
        passing.update(Batch(positions, experts()[positions]))
    lost = whole = 0.0
    for expert in experts().double().numpy():
        left, values, right = np.linalg.svd(expert, full_matrices=False)
        lost += ((expert - (left[:, :rank] * values[:rank]) @ right[:rank]) ** 2).sum()
        whole += (expert**2).sum()
    assert passing.relative_error == pytest.approx((lost / whole) ** 0.5, abs=1e-3 if rank == P else
                                                   1e-6)  # fmt: skip


def test_the_baseline_survives_a_checkpoint(tmp_path):
    whole, first, second = (BaselineAccumulator(2, min(P, D)) for _ in range(3))
    for passing in (whole, first):
        passing.update(Batch([0, 1], experts()[:2]))
    arrays.write(tmp_path / "energies", first.arrays()["energies"])
    second.restore(tmp_path.joinpath, first.scalars())
    for passing in (whole, second):
        passing.update(Batch([2, 3], experts()[2:4]))
    assert whole.scalars() == second.scalars()
    assert torch.equal(whole.energies, second.energies)


def group_of(count, p, d):
    class Many(ExpertGroup):
        sizes = GroupSizes(count, p, d, p // 2, 4, 2)

    return Many("up", "up", (), p // 2, 4)


def test_small_experts_are_all_measured_and_large_ones_sampled_evenly():
    assert sampled_experts(group_of(240, 132, 192)) == list(range(240))
    large = group_of(1440, 1408, 2048)
    sample = sampled_experts(large)
    count = int(MAX_OPERATIONS / large.sizes.spectrum_operations)
    assert MIN_EXPERTS < len(sample) == count < 1440
    steps = np.diff([*sample, 1440])
    assert sample[0] == 0
    assert steps.max() - steps.min() <= 1
    assert len(sampled_experts(group_of(1440, 16_384, 16_384))) == MIN_EXPERTS


def test_svd_rank_has_no_more_parameters_than_adapters_and_bank():
    sizes = GroupSizes(experts=60, p=1408, d=2048, rank=1056, bases=15, itemsize=2)
    kept = 60 * 1408 * 1056 + 15 * 1056 * 2048
    assert sizes.kept_parameters == kept
    assert sizes.svd_rank == kept // (60 * (1408 + 2048))
    assert sizes.svd_rank * 60 * (1408 + 2048) <= kept < (sizes.svd_rank + 1) * 60 * (1408 + 2048)
    assert sizes.parameter_ratio(100) == (kept + 100) / (60 * 1408 * 2048)
