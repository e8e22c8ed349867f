"""One epoch against a dense float64 recomputation, and descent of the loss over epochs."""

import numpy as np
import pytest
import torch

from globe_stream.checkpoint.reader import Batch
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.normalization import Normalization
from globe_stream.kernels.atoms import unit_mixture_scales
from globe_stream.store import arrays
from globe_stream.store.tiles import Tiles
from globe_stream.training.bank_update import BankUpdateSettings, update_bank
from globe_stream.training.code_update import Coding
from globe_stream.training.epoch import EpochAccumulator, EpochSettings
from globe_stream.training.metric import Metric, metric_gram, moving_mean, plain_gram
from globe_stream.training.moments import EpochMoments

N, P, D, R, M, ROWS = 20, 10, 16, 6, 5, 4
CPU = torch.device("cpu")
BY = Normalization(0.05, 0.4)
RIDGE = 1e-6


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def experts():
    """(N, P, D) that a shared bank explains in part."""
    atoms = normal(M, R, D, seed=0)
    codes = normal(N, M, seed=1).clamp_min(0) + 0.1
    mixed = torch.einsum("nm,mrd->nrd", codes, atoms)
    whole = normal(N, P, R, seed=2) @ mixed / 3 + 0.8 * normal(N, P, D, seed=3)
    return (0.4 * whole + 0.05).float()


def begin():
    bank = normal(M, R, D, seed=4)
    bank = (bank / bank.flatten(1).norm(dim=1)[:, None, None]).float()
    tiles = Tiles((M, R, D), ROWS)
    tiles.put_items(0, bank)
    codes = (normal(N, M, seed=5).abs() + 0.05).float()
    codes = codes * unit_mixture_scales(codes, plain_gram(tiles))[:, None].float()
    return tiles, codes


def make_settings(**changes):
    given = {
        "epoch": 0,
        "targets": "surrogate",
        "beta": 1.0,
        "activation": Activation("none", 0.0, 2.0),
        "damping": 0.25,
        "coding_share": 1.0,
        "coding": Coding(steps=400),
        "ridge": RIDGE,
        "target_ridge": 1e-3,
        "target_weight": 1.0,
    }
    return EpochSettings(**{**given, **changes})


def accumulator(tiles, codes, settings, metric):
    gram = metric_gram(tiles, metric)
    norms = experts().double().square().sum((1, 2))
    return EpochAccumulator(
        tiles, codes, gram, metric, EpochMoments.empty(Tiles((M, R, D), ROWS)), settings, BY, norms
    )


def feed(passing, batch=7, skip=0):
    whole = experts()
    for first in list(range(0, N, batch))[skip:]:
        positions = list(range(first, min(first + batch, N)))
        passing.update(Batch(positions, whole[positions].clone()))
    return passing


def dense(tiles, codes, activation=None):
    """Normalised experts, mixtures, hidden factors and adapters in float64."""
    weights = (experts().double() - BY.mean) / BY.scale
    bank = tiles.items(0, M).double()
    mixtures = torch.einsum("nm,mrd->nrd", codes.double(), bank)
    activation = activation or Activation("none", 0.0, 2.0)
    hidden = activation.apply(mixtures)
    gram = hidden @ hidden.mT
    share = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(R)
    adapters = torch.linalg.solve(gram + share, hidden @ weights.mT).mT
    return weights, mixtures, hidden, adapters


GEOMETRIES = {
    "identity": lambda: Metric.identity(R, CPU),
    "metric": lambda: Metric.from_moments(
        normal(R, 2 * R, seed=8) @ normal(R, 2 * R, seed=8).T,
        torch.eye(D, dtype=torch.float64)
        - 0.9 * torch.diag(torch.linspace(0, 1, D, dtype=torch.float64)),
        CPU,
    ),
}


@pytest.mark.parametrize("kind", list(GEOMETRIES))
@pytest.mark.parametrize("curve", [("none", 0.0), ("tanh", 0.7), ("silu", 1.0)])
def test_an_epoch_gathers_what_its_definition_says(kind, curve):
    tiles, codes = begin()
    metric, activation = GEOMETRIES[kind](), Activation(*curve, 2.0)
    epoch = 3  # of 20 experts every second one enters the metric, here the odd ones
    settings = make_settings(activation=activation, epoch=epoch)
    passed = feed(accumulator(tiles, codes, settings, metric))
    weights, mixtures, hidden, adapters = dense(tiles, codes, activation)

    errors = (weights - adapters @ hidden).square().sum((1, 2)) * BY.scale**2
    torch.testing.assert_close(passed.log.squared_errors, errors, rtol=1e-4, atol=0)
    relative = float((errors.sum() / experts().double().square().sum()).sqrt())
    assert passed.log.relative_error == pytest.approx(relative, rel=1e-5)

    curvature = 4.0 * adapters.mT @ adapters
    torch.testing.assert_close(
        passed.moments.adapter_moment.double(), curvature[1::2].sum(0), rtol=1e-3, atol=1e-3
    )
    spaces = torch.linalg.pinv(hidden[1::2]) @ hidden[1::2]
    expected = torch.eye(D, dtype=torch.float64) - spaces.mean(0)
    torch.testing.assert_close(
        passed.moments.mean_residual_projector().double(), expected, atol=1e-3, rtol=0
    )

    left = metric.left_inverse.double()
    slope = torch.autograd.functional.jvp(activation.apply, mixtures, torch.ones_like(mixtures))[1]
    gradient = slope * (adapters.mT @ (weights - adapters @ hidden))
    weight = (curvature * left).sum((1, 2)) / R
    new = passed.new_codes.double()
    gradients = torch.einsum("nm,nrd->mrd", new, gradient)
    torch.testing.assert_close(
        passed.moments.gradients.items(0, M).double(),
        gradients,
        rtol=1e-3,
        atol=1e-3 * float(gradients.abs().max()),
    )
    code_moment = torch.einsum("n,nj,nk->jk", weight, new, new)
    torch.testing.assert_close(passed.moments.code_moment, code_moment, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("targets", ["surrogate", "pinv"])
def test_an_expert_without_atoms_does_no_harm(beta, targets):
    tiles, codes = begin()
    codes[3] = 0
    settings = make_settings(beta=beta, targets=targets)
    passed = feed(accumulator(tiles, codes, settings, GEOMETRIES["identity"]()))
    assert bool(passed.new_codes.isfinite().all())
    assert bool(passed.moments.gradients.items(0, M).isfinite().all())
    assert bool(passed.moments.code_moment.isfinite().all())
    assert float(passed.moments.worst_step.norm()) > 0
    whole = ((experts()[3].double() - BY.mean) / BY.scale).square().sum() * BY.scale**2
    assert float(passed.log.squared_errors[3]) == pytest.approx(float(whole), rel=1e-5)
    if beta < 1:
        assert float(passed.new_codes[3].sum()) > 0, "the warm-start target gives it atoms again"


@pytest.mark.parametrize("kind", list(GEOMETRIES))
def test_new_codes_are_nnls_towards_the_targets_in_the_metric(kind):
    tiles, codes = begin()
    metric = GEOMETRIES[kind]()
    settings = make_settings(coding=Coding(steps=3000))
    new = feed(accumulator(tiles, codes, settings, metric)).new_codes.double()
    weights, mixtures, hidden, adapters = dense(tiles, codes)
    gradient = 2.0 * adapters.mT @ (weights - adapters @ hidden)
    left = metric.left_inverse.double()
    weight = (4.0 * (adapters.mT @ adapters) * left).sum((1, 2)) / R
    move = left @ gradient
    eye = torch.eye(D, dtype=torch.float64)
    if metric.right_inverse is not None:
        move = move @ metric.right_inverse.double()
    targets = mixtures + move / weight[:, None, None]
    rows, columns = (
        torch.linalg.cholesky(x.double()).mT
        for x in (metric.left, eye if metric.right is None else metric.right)
    )
    bank = (rows @ tiles.items(0, M).double() @ columns.mT).flatten(1)
    points = (rows @ targets @ columns.mT).flatten(1)
    from scipy.optimize import nnls

    expected = np.stack([nnls(bank.T.numpy(), point.numpy())[0] for point in points])
    np.testing.assert_allclose(new.numpy(), expected, atol=2e-3 * expected.max())


def test_the_coding_share_shortens_the_way():
    tiles, codes = begin()
    full, none = (
        feed(accumulator(tiles, codes, make_settings(coding_share=share), GEOMETRIES["identity"]()))
        for share in (1.0, 0.0)
    )
    assert float((full.new_codes - codes).norm()) > 0.1
    torch.testing.assert_close(none.new_codes, codes, atol=1e-4, rtol=0)


def test_a_restored_pass_continues_to_the_same_bits(tmp_path):
    tiles, codes = begin()
    settings, metric = make_settings(), GEOMETRIES["metric"]()
    whole = feed(accumulator(tiles, codes, settings, metric))
    first = accumulator(tiles, codes, settings, metric)
    parts = experts()
    first.update(Batch(list(range(7)), parts[:7].clone()))
    for name, source in first.arrays().items():
        arrays.write(tmp_path / name, source)
    second = accumulator(tiles, codes, settings, metric)
    second.restore(lambda name: tmp_path / name, first.scalars())
    feed(second, skip=1)
    assert second.scalars() == whole.scalars()
    for name, source in whole.arrays().items():
        assert torch.equal(plain(source), plain(second.arrays()[name])), name


def plain(source):
    return source.items(0, M) if isinstance(source, Tiles) else source


# -- descent -------------------------------------------------------------------------------------


def run_epochs(count, damping, tmp_path, *, targets="surrogate", beta=1.0, use_metric=True):
    """relF at the start of each epoch; momentum 0, linear activation."""
    tiles, codes = begin()
    metric = Metric.identity(R, CPU)
    errors, means = [], (None, None)
    for epoch in range(count):
        coding = Coding(steps=1000)
        settings = make_settings(
            epoch=epoch, damping=damping, targets=targets, beta=beta, coding=coding
        )
        passed = feed(accumulator(tiles, codes, settings, metric))
        errors.append(passed.log.relative_error)
        update = update_bank(
            tiles,
            None,
            passed.moments,
            passed.new_codes,
            plain_gram(tiles),
            metric,
            BankUpdateSettings(0.0, 1e-9, 0.0),
            tmp_path / f"m{epoch}",
        )
        tiles, codes = update.bank, update.codes
        if use_metric:
            newest = (
                passed.moments.mean_adapter_moment(),
                passed.moments.mean_residual_projector(),
            )
            means = tuple(map(moving_mean, means, newest))
            metric = Metric.from_moments(*means, CPU)
            if use_metric == "left":
                metric = Metric(metric.left, metric.left_inverse, None, None)
    return np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("adapter_moment", [False, "left"])
def test_the_loss_never_rises_when_the_weight_majorises_the_curvature(tmp_path, adapter_moment):
    """4 c tr(.)/r >= lambda_max(.) whenever c >= r / 4, so such a step cannot raise the loss."""
    errors = run_epochs(25, R / 4, tmp_path, use_metric=adapter_moment)
    assert bool((errors[1:] <= errors[:-1] * (1 + 1e-5)).all())
    assert errors[-1] < 0.97 * errors[0]


@pytest.mark.slow
def test_the_default_damping_descends_on_the_whole_and_faster(tmp_path):
    """c = 1/4 takes the mean curvature for the largest: no guarantee, but much faster.

    Single epochs may rise; it is the schedule that rejects those.
    """
    safe = run_epochs(25, R / 4, tmp_path)
    quick = run_epochs(25, 0.25, tmp_path)
    assert quick[-1] < 0.95 * safe[-1]
    assert quick[-1] < 0.5 * quick[0]
    assert int((quick[1:] > quick[:-1]).sum()) <= 5


@pytest.mark.slow
def test_much_too_long_a_step_does_raise_the_loss(tmp_path):
    """The descent above is no accident of the data."""
    errors = run_epochs(10, 0.01, tmp_path)
    assert bool((errors[1:] > errors[:-1] * 1.01).any())


@pytest.mark.slow
def test_warm_up_descends_on_its_own_distance(tmp_path):
    """Each sub-step of the warm-up is exact: sum ||Q_i W_i / ||W_i|| - Z_i||^2 never rises."""
    import scipy.linalg

    tiles, codes = begin()
    metric = Metric.identity(R, CPU)
    distances = []
    for epoch in range(12):
        weights, mixtures, _, _ = dense(tiles, codes)
        group = weights / weights.flatten(1).norm(dim=1)[:, None, None]
        total = 0.0
        for expert, mixture in zip(group.numpy(), mixtures.numpy(), strict=True):
            rotation, _ = scipy.linalg.polar(mixture @ expert.T, side="left")
            # The scale of a code is free, so the distance is to the best multiple of Z.
            target = rotation @ expert
            fitted = (target * mixture).sum() / (mixture**2).sum() * mixture
            total += np.linalg.norm(target - fitted) ** 2
        distances.append(total)
        settings = make_settings(beta=0.0, coding=Coding(steps=2000))
        passed = feed(accumulator(tiles, codes, settings, metric))
        update = update_bank(
            tiles,
            None,
            passed.moments,
            passed.new_codes,
            plain_gram(tiles),
            metric,
            BankUpdateSettings(0.0, 1e-9, 0.0),
            tmp_path / f"m{epoch}",
        )
        tiles, codes = update.bank, update.codes
    found = np.array(distances)
    assert found[-1] < 0.97 * found[0]
    assert bool((found[1:] <= found[:-1] * (1 + 1e-5)).all())
