"""The metric of inputs against its definition, and adapters fitted in it against least squares."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from globe_stream.errors import GlobeError
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import fit_adapters
from globe_stream.factorization.input_metric import InputMetric, LayerMetrics
from globe_stream.io.safetensors import read_header

P, R, D, TOKENS = 7, 5, 11, 40


def _inputs(seed: int = 0) -> torch.Tensor:
    """Inputs (t, d) float64 of very different energies by direction."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(TOKENS, D, generator=generator).double()
    return (
        mixed * torch.logspace(0, -2, D).double() @ torch.linalg.qr(torch.randn(D, D))[0].double()
    )


def test_energy_is_that_of_the_outputs() -> None:
    inputs, matrix = _inputs(), torch.randn(P, D)
    metric = InputMetric.of((inputs.T @ inputs).float(), 0.3)
    mean = float(inputs.square().sum()) / D
    expected = float((matrix.double() @ inputs.T).square().sum()) / mean
    assert metric.energy(matrix) == pytest.approx(expected, rel=1e-5)
    assert float(metric.matrix.diagonal().mean()) == pytest.approx(1.3, rel=1e-6)


@pytest.mark.parametrize("curved", [False, True])
def test_adapters_minimise_the_error_of_damped_outputs(curved: bool) -> None:
    """Oracle: lstsq over the inputs themselves, and over sqrt(damping) times every direction."""
    torch.manual_seed(3)
    phi = Activation("silu", 0.7, 2.0) if curved else Activation()
    weights, mixtures = torch.randn(2, P, D), torch.randn(2, R, D)
    inputs, damping = _inputs(), 0.1
    metric = InputMetric.of((inputs.T @ inputs).float(), damping)
    fit = fit_adapters(weights, mixtures, phi, 1e-12, metric)
    mean = float(inputs.square().sum()) / D
    seen = torch.cat([inputs / mean**0.5, damping**0.5 * torch.eye(D).double()])
    hidden = phi.apply(mixtures.clone()).double()
    for k in range(2):
        found = torch.linalg.lstsq(seen @ hidden[k].T, seen @ weights[k].double().T).solution.T
        torch.testing.assert_close(fit.adapters[k], found, rtol=1e-5, atol=1e-6)
        plain = (weights[k].double() - found @ hidden[k]).square().sum()
        assert float(fit.squared_error[k]) == pytest.approx(float(plain), rel=1e-4)


def test_without_correlations_the_metric_changes_nothing() -> None:
    torch.manual_seed(4)
    weights, mixtures = torch.randn(1, P, D), torch.randn(1, R, D)
    plain = fit_adapters(weights, mixtures, Activation(), 1e-6)
    even = fit_adapters(
        weights, mixtures, Activation(), 1e-6, InputMetric.of(7 * torch.eye(D), 0.1)
    )
    torch.testing.assert_close(even.adapters.float(), plain.adapters, rtol=1e-4, atol=1e-5)


def test_the_weighted_error_is_no_larger_than_that_of_the_plain_fit() -> None:
    torch.manual_seed(5)
    weights, mixtures = torch.randn(1, P, D), torch.randn(1, R, D)
    inputs = _inputs(1)
    metric = InputMetric.of((inputs.T @ inputs).float(), 1e-6)
    errors = []
    for chosen in (None, metric):
        fit = fit_adapters(weights, mixtures, Activation(), 1e-9, chosen)
        errors.append(metric.energy(weights[0] - fit.adapters[0].float() @ fit.hidden[0]))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_moments_without_meaning_are_refused(value: float) -> None:
    moment = torch.full((D, D), value)
    with pytest.raises(GlobeError, match="zero, NaN or infinite"):
        InputMetric.of(moment, 0.1)


def test_layers_are_read_from_their_sums(tmp_path: Path) -> None:
    sums = {str(layer): (x := _inputs(layer)).T @ x for layer in (3, 5)}
    save_file({k: v.float() for k, v in sums.items()}, str(tmp_path / "sums"))
    entries = {int(one.name): one for one in read_header(tmp_path / "sums").tensors}
    with LayerMetrics(tmp_path / "sums", entries, 0.1) as metrics:
        for layer in (5, 3, 3):
            expected = InputMetric.of(sums[str(layer)].float(), 0.1)
            assert torch.equal(metrics.of(layer).matrix, expected.matrix)
