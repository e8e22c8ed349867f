"""Codes with a wanted support, and the temperature that steers it."""

import numpy as np
import pytest
import scipy.optimize
import torch

from globe_stream.training.code_update import Coding, next_temperature, solve_codes, support

B, M, LENGTH = 12, 8, 30


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem():
    """K, b and the atoms and points (columns) behind them."""
    atoms, points = normal(LENGTH, M, seed=0), normal(LENGTH, B, seed=1)
    points += atoms @ normal(M, B, seed=2).clamp_min(0)
    return atoms.T @ atoms, points.T @ atoms, atoms, points


def exact(atoms, points, kept=None):
    """Non-negative least squares by scipy, on the allowed atoms only."""
    codes = np.zeros((B, M))
    for i in range(B):
        allowed = np.arange(M) if kept is None else np.nonzero(kept[i].numpy())[0]
        codes[i, allowed] = scipy.optimize.nnls(atoms.numpy()[:, allowed], points.numpy()[:, i])[0]
    return torch.from_numpy(codes)


def test_unconstrained_codes_converge_to_nnls():
    gram, linear, atoms, points = problem()
    found = solve_codes(gram, linear, torch.zeros(B, M).double(), Coding(steps=3000)).codes
    torch.testing.assert_close(found, exact(atoms, points), atol=1e-6, rtol=0)


def test_without_a_support_codes_below_epsilon_of_the_largest_are_dropped():
    gram, linear, _, _ = problem()
    start = torch.zeros(B, M).double()
    whole = solve_codes(gram, linear, start, Coding(steps=3000, prune=0.0))
    pruned = solve_codes(gram, linear, start, Coding(steps=3000, prune=0.4))
    for before, after in zip(whole.codes.tolist(), pruned.codes.tolist(), strict=True):
        assert after == [code if code >= 0.4 * max(before) else 0.0 for code in before]
    assert pruned.candidates == whole.candidates == int((whole.codes > 0).sum())
    assert int((pruned.codes > 0).sum()) < whole.candidates


def test_few_steps_from_a_guess_never_raise_the_objective():
    gram, linear, _, _ = problem()
    start = normal(B, M, seed=5).clamp_min(0)

    def objective(codes):
        return 0.5 * ((codes @ gram) * codes).sum(1) - (codes * linear).sum(1)

    found = solve_codes(gram, linear, start, Coding(steps=1)).codes
    assert bool((objective(found) <= objective(start) + 1e-12).all())
    assert bool((found >= 0).all())


@pytest.mark.parametrize("mapping", ["entmax", "sparsemax", "softmax"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_kept_values_are_refitted_on_the_support(mapping, temperature):
    gram, linear, atoms, points = problem()
    settings = Coding(steps=3000, sparse=True, mapping=mapping, temperature=temperature, prune=0.05)
    found = solve_codes(gram, linear, torch.zeros(B, M).double(), settings).codes
    kept = support(exact(atoms, points), settings)
    assert not bool(kept.all()), "the case must drop something"
    torch.testing.assert_close(found, exact(atoms, points, kept), atol=1e-6, rtol=0)


def test_at_temperature_one_a_support_at_target_is_left_as_it_is():
    gram, _, _, _ = problem()
    solution = torch.zeros(B, M).double()
    for row in range(B):
        chosen = torch.randperm(M, generator=torch.Generator().manual_seed(row))[:3]
        solution[row, chosen] = 1 + 0.3 * normal(3, seed=row).clamp(-1, 1)
    slack = 0.1 * gram.diagonal().mean()
    linear = solution @ gram - torch.where(solution > 0, 0.0, slack)  # optimal: KKT hold
    settings = Coding(steps=500, sparse=True, temperature=1.0)
    assert torch.equal(support(solution, settings), solution > 0)
    torch.testing.assert_close(solve_codes(gram, linear, solution, settings).codes, solution)
    far = solve_codes(gram, linear, torch.ones(B, M).double(), settings).codes
    torch.testing.assert_close(far, solution, atol=1e-6, rtol=0)


def test_float32_codes_stay_float32():
    gram, linear, _, _ = problem()
    settings = Coding(sparse=True)
    assert solve_codes(gram, linear, torch.zeros(B, M), settings).codes.dtype == torch.float32


def test_candidates_are_counted_before_the_pruning():
    gram, linear, _, _ = problem()
    plain = solve_codes(gram, linear, torch.zeros(B, M).double(), Coding(steps=3000))
    assert plain.candidates == int((plain.codes > 0).sum())
    settings = Coding(steps=3000, sparse=True, temperature=0.3, prune=0.05)
    pruned = solve_codes(gram, linear, torch.zeros(B, M).double(), settings)
    assert pruned.candidates == plain.candidates
    assert int((pruned.codes > 0).sum()) < pruned.candidates


@pytest.mark.parametrize("mapping", ["entmax", "sparsemax", "softmax"])
def test_support_grows_with_temperature(mapping):
    codes = normal(50, M, seed=3).exp()
    sizes = [
        int(support(codes, Coding(sparse=True, mapping=mapping, temperature=t)).sum())
        for t in (0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 80
    assert sizes[-1] == 50 * M


def test_support_never_adds_atoms_and_always_keeps_the_largest():
    codes = normal(50, M, seed=3).clamp_min(0)
    codes = codes[codes.sum(1) > 0]
    for settings in (
        Coding(temperature=1e-3),
        Coding(temperature=1e3),
        Coding(cap=1),
        Coding(prune=1.0),
    ):
        kept = support(codes, settings)
        assert bool(kept[torch.arange(len(codes)), codes.argmax(1)].all())
        assert not bool((kept & (codes == 0)).any())


def test_the_cap_keeps_the_largest_codes():
    codes = normal(50, M, seed=3).exp()
    kept = support(codes, Coding(temperature=1e3, cap=3))
    assert kept.sum(1).tolist() == [3] * 50
    for row, chosen in zip(codes, kept, strict=True):
        assert float(row[chosen].min()) >= float(row[~chosen].max())


def test_pruning_drops_shares_below_epsilon_of_the_largest():
    codes = torch.tensor([[1.0, 0.5, 0.09, 0.0]]).double()
    settings = Coding(mapping="softmax", temperature=1.0, prune=0.1)  # softmax of logs: the shares
    assert support(codes, settings).tolist() == [[True, True, False, False]]


def test_l1_shortens_codes():
    gram, linear, _, _ = problem()
    start = torch.zeros(B, M).double()
    plain = solve_codes(gram, linear, start, Coding(steps=3000)).codes
    short = solve_codes(gram, linear, start, Coding(steps=3000, l1=0.1)).codes
    assert float(short.sum()) < float(plain.sum())
    expected = solve_codes(
        gram, linear - 0.1 * gram.diagonal().mean(), start, Coding(steps=3000)
    ).codes
    torch.testing.assert_close(short, expected)


# -- temperature ---------------------------------------------------------------------------------

TARGET = 6


def settle(temperature, law, steps=120):
    """Median supports of a population under the control law `law`, from `temperature`."""
    codes = normal(101, 40, seed=7).mul(1.5).exp()
    medians = []
    for _ in range(steps):
        kept = support(codes, Coding(sparse=True, temperature=temperature))
        medians.append(float(kept.sum(1).double().median()))
        temperature = law(temperature, medians[-1])
    return medians


def control(temperature, median):
    return next_temperature(temperature, median, TARGET, 0.3, 1e-3, 1e3)


@pytest.mark.parametrize("temperature", [0.05, 20.0])
def test_the_support_settles_from_above_and_from_below(temperature):
    medians = settle(temperature, control)
    assert abs(medians[0] - TARGET) > 3, "the start must be off target"
    assert all(abs(median - TARGET) <= 1 for median in medians[60:])


@pytest.mark.parametrize("temperature", [0.05, 20.0])
def test_with_the_printed_sign_it_runs_away(temperature):
    def printed(now, median):
        return next_temperature(now, median, TARGET, -0.3, 1e-3, 1e3)

    assert all(abs(median - TARGET) > 3 for median in settle(temperature, printed)[60:])


def test_the_law_is_the_clamped_exponential():
    assert next_temperature(2.0, 18, 12, 0.3, 1e-3, 1e3) == pytest.approx(2 * np.exp(-0.15))
    assert next_temperature(2.0, 6, 12, 0.3, 1e-3, 1e3) == pytest.approx(2 * np.exp(0.15))
    assert next_temperature(2.0, 12, 12, 0.3, 1e-3, 1e3) == 2.0
    assert next_temperature(2.0, 12_000, 12, 5.0, 1e-3, 1e3) == pytest.approx(2 * np.exp(-2))
    assert next_temperature(2.0, 24, 12, 0.3, 1.9, 1e3) == 1.9
    assert next_temperature(2.0, 0, 12, 5.0, 1e-3, 2.1) == 2.1
