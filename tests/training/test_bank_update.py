"""Epoch sums and the dictionary step against a dense float64 MOD with explicit targets."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from globe_stream.store import arrays
from globe_stream.store.arrays import StoredTiles
from globe_stream.store.tiles import Tiles
from globe_stream.training.bank_update import BankUpdateSettings, update_bank
from globe_stream.training.gradients import PreconditionedGradient
from globe_stream.training.metric import Metric, plain_gram
from globe_stream.training.moments import EpochMoments

N, M, R, D, ROWS = 40, 6, 5, 9, 2


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Case:
    """A bank, codes before and after coding, gradients, weights and a metric, all in float64."""

    def __init__(self, adapter_moment=True):
        self.bank = normal(M, R, D, seed=0)
        self.bank /= self.bank.flatten(1).norm(dim=1)[:, None, None]
        self.bank = self.bank.float().double()
        self.old = normal(N, M, seed=1).clamp_min(0).float().double()
        self.new = (self.old + 0.3 * normal(N, M, seed=2)).clamp_min(0).float().double()
        self.gradients = normal(N, R, D, seed=3).float().double()
        self.weights = (0.5 + normal(N, seed=4).abs()).float().double()
        self.metric = Metric.identity(R, torch.device("cpu"))
        if adapter_moment:
            left, right = normal(R, 2 * R, seed=5), normal(D, 2 * D, seed=6)
            self.metric = Metric.from_moments(left @ left.T, right @ right.T, torch.device("cpu"))

    def targets(self):
        """S_i = Z_i + M^-1 F_i C^-1 / L_i, Z_i of the codes before."""
        moves = self.metric.left_inverse.double() @ self.gradients
        if self.metric.right_inverse is not None:
            moves = moves @ self.metric.right_inverse.double()
        return mix(self.old, self.bank) + moves / self.weights[:, None, None]

    def moments(self, path=None, batch=16):
        moments = EpochMoments.empty(Tiles((M, R, D), ROWS, path=path))
        for first in range(0, N, batch):
            part = slice(first, first + batch)
            preconditioned = PreconditionedGradient(
                self.gradients[part].float(), self.weights[part].float()
            )
            moments.add(preconditioned, self.old[part].float(), self.new[part].float())
        return moments

    def step(self, tmp_path, settings, *, previous=None, spilled=False, name="momentum"):
        tiles = Tiles((M, R, D), ROWS, path=tmp_path / f"{name}-bank" if spilled else None)
        tiles.put_items(0, self.bank.float())
        moments = self.moments(tmp_path / f"{name}-gradients" if spilled else None)
        return update_bank(
            tiles,
            previous,
            moments,
            self.new.float(),
            plain_gram(tiles),
            self.metric,
            settings,
            tmp_path / name,
        )


def mix(codes, bank):
    return torch.einsum("nm,mrd->nrd", codes, bank)


def content(tiles):
    return tiles.items(0, tiles.shape[0]).double()


def mod(case, ridge):
    """The step of MOD with explicit targets, in float64."""
    residual = case.targets() - mix(case.new, case.bank)
    system = (case.new.T * case.weights) @ case.new
    system += ridge * system.diagonal().mean() * torch.eye(M, dtype=torch.float64)
    sides = torch.einsum("n,nm,nrd->mrd", case.weights, case.new, residual)
    return torch.linalg.solve(system, sides.flatten(1)).view(M, R, D)


@pytest.mark.parametrize("adapter_moment", [False, True])
def test_sums_match_their_definitions(adapter_moment):
    case, moments = Case(adapter_moment), Case(adapter_moment).moments()
    torch.testing.assert_close(
        content(moments.gradients),
        torch.einsum("nm,nrd->mrd", case.new, case.gradients),
        atol=1e-4,
        rtol=1e-4,
    )
    code_moment = torch.einsum("n,nj,nk->jk", case.weights, case.new, case.new)
    code_change_moment = torch.einsum("n,nj,nk->jk", case.weights, case.new, case.old - case.new)
    torch.testing.assert_close(moments.code_moment, code_moment, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(moments.code_change_moment, code_change_moment, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("adapter_moment", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("spilled", [False, True])
def test_a_step_is_that_of_mod_with_explicit_targets(tmp_path, adapter_moment, ridge, spilled):
    case = Case(adapter_moment)
    update = case.step(tmp_path, BankUpdateSettings(0.0, ridge, 0.0), spilled=spilled)
    moved = case.bank + mod(case, ridge)
    norms = moved.flatten(1).norm(dim=1)
    expected = moved / norms[:, None, None]
    torch.testing.assert_close(content(update.bank), expected, atol=1e-4, rtol=1e-3)
    assert update.largest_norm_change == pytest.approx(float((norms - 1).abs().max()), rel=1e-3)


def test_without_ridge_the_step_solves_the_weighted_least_squares_problem(tmp_path):
    case = Case()
    update = case.step(tmp_path, BankUpdateSettings(0.0, 0.0, 0.0))
    roots = case.weights.sqrt()[:, None].numpy()
    solved = np.linalg.lstsq(
        roots * case.new.numpy(), roots * case.targets().flatten(1).numpy(), rcond=None
    )[0]
    solved /= np.linalg.norm(solved, axis=1, keepdims=True)
    np.testing.assert_allclose(content(update.bank).flatten(1).numpy(), solved, atol=1e-4)


def test_atoms_are_group_and_the_gram_is_theirs(tmp_path):
    update = Case().step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.0))
    atoms = content(update.bank).flatten(1)
    torch.testing.assert_close(
        atoms.norm(dim=1), torch.ones(M, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(update.gram, atoms @ atoms.T, atol=1e-6, rtol=0)


def test_rescaled_codes_keep_every_product_and_give_group_mixtures(tmp_path):
    case = Case()
    update = case.step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.0))
    before = mix(case.new, case.bank + mod(case, 1e-6)).flatten(1)
    after = mix(update.codes.double(), content(update.bank)).flatten(1)
    used = before.norm(dim=1) > 0
    group = before[used] / before[used].norm(dim=1, keepdim=True)
    torch.testing.assert_close(after[used], group, atol=1e-4, rtol=0)
    assert bool((update.codes >= 0).all())
    assert torch.equal(update.codes > 0, case.new > 0)


def test_momentum_adds_the_last_step_and_is_scaled_with_its_atom(tmp_path):
    case = Case()
    first = case.step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.0), name="one")
    norms = (case.bank + mod(case, 1e-6)).flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(
        content(first.momentum), mod(case, 1e-6) / norms, atol=1e-4, rtol=1e-3
    )
    arrays.write(tmp_path / "stored", first.momentum)
    stored = StoredTiles(tmp_path / "stored", first.momentum)
    second = case.step(tmp_path, BankUpdateSettings(0.7, 1e-6, 0.0), previous=stored, name="two")
    velocity = 0.7 * content(first.momentum) + mod(case, 1e-6)
    moved = case.bank + velocity
    norms = moved.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(content(second.bank), moved / norms, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(content(second.momentum), velocity / norms, atol=1e-4, rtol=1e-3)


def test_the_coherence_penalty_pushes_similar_atoms_apart(tmp_path):
    case = Case()
    case.gradients *= 0
    case.new = case.old
    case.bank[1] = case.bank[0] + 0.3 * case.bank[1]
    case.bank[1] /= case.bank[1].norm()
    flat = case.bank.flatten(1)
    gram = flat @ flat.T
    update = case.step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.3))
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    share = 0.3 / (largest + largest**0.5)
    expected = flat - share * (gram - torch.eye(M, dtype=torch.float64)) @ flat
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(content(update.bank).flatten(1), expected, atol=1e-5, rtol=0)
    assert float(update.gram[0, 1]) < float(gram[0, 1]) - 0.01


@pytest.mark.parametrize("coherence", [0.3, 1.0])
def test_the_coherence_penalty_is_stable_however_similar_the_atoms_are(tmp_path, coherence):
    """Atoms that share nearly everything: a fixed step is unstable above 2 / (l - 1)."""
    case = Case()
    case.gradients *= 0
    case.new = case.old
    common = torch.ones_like(case.bank[0])
    case.bank = common + 0.2 * case.bank / case.bank.std()
    worst = [1.0]
    for step in range(6):
        case.bank /= case.bank.flatten(1).norm(dim=1)[:, None, None]
        settings = BankUpdateSettings(0.0, 1e-6, coherence)
        update = case.step(tmp_path, settings, name=f"step-{step}")
        off = update.gram - torch.diag(update.gram.diagonal())
        worst.append(float(off.abs().max()))
        case.bank = content(update.bank).double()
    assert worst[-1] < worst[1] - 0.15
    assert all(after < before + 0.05 for before, after in pairwise(worst))


def test_a_shorter_step_goes_part_of_the_way(tmp_path):
    case = Case()
    update = case.step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.0, 0.25))
    moved = case.bank + 0.25 * mod(case, 1e-6)
    expected = moved / moved.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(content(update.bank), expected, atol=1e-4, rtol=1e-3)


def test_without_gradients_and_changes_of_code_nothing_moves(tmp_path):
    case = Case()
    case.gradients *= 0
    case.new = case.old
    update = case.step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.0))
    torch.testing.assert_close(content(update.bank), case.bank, atol=1e-6, rtol=0)


def test_of_several_atoms_that_nobody_uses_all_but_the_first_stay(tmp_path):
    case = Case()
    case.new[:, 1:3] = 0
    update = case.step(tmp_path, BankUpdateSettings(0.0, 1e-6, 0.0))
    assert update.revived == 1
    torch.testing.assert_close(content(update.bank)[2], case.bank[2], atol=1e-5, rtol=0)
    assert bool(content(update.bank).isfinite().all())


def worst_noted(case, errors, batch=16):
    """Sums of `case` that have seen the squared errors of all experts."""
    moments = case.moments()
    for first in range(0, N, batch):
        part = slice(first, first + batch)
        preconditioned = PreconditionedGradient(
            case.gradients[part].float(), case.weights[part].float()
        )
        moments.note_worst(list(range(N))[part], errors[part], preconditioned)
    return moments


def test_a_dead_atom_becomes_what_the_worst_experts_mixture_should_be(tmp_path):
    case = Case()
    case.new[:, 2] = 0
    errors = normal(N, seed=9).abs()
    moments, worst = worst_noted(case, errors), int(errors.argmax())
    assert (moments.worst_position, moments.worst_error) == (
        worst,
        pytest.approx(float(errors.max())),
    )
    tiles = Tiles((M, R, D), ROWS)
    tiles.put_items(0, case.bank.float())
    settings = BankUpdateSettings(0.0, 1e-6, 0.0)
    update = update_bank(
        tiles,
        None,
        moments,
        case.new.float(),
        plain_gram(tiles),
        case.metric,
        settings,
        tmp_path / "momentum",
    )
    left, right = case.metric.left_inverse.double(), case.metric.right_inverse.double()
    target = mix(case.new, case.bank)[worst]
    target = target + left @ case.gradients[worst] @ right / case.weights[worst]
    torch.testing.assert_close(content(update.bank)[2], target / target.norm(), atol=1e-4, rtol=0)
    assert not bool(update.momentum.items(2, 3).any())
    assert update.revived == 1


def test_the_worst_expert_is_one_that_is_pulled_somewhere():
    case = Case()
    errors = torch.ones(N, dtype=torch.float64)
    errors[5], errors[7] = 3.0, 2.0
    case.weights[5] = 0
    case.gradients[5] = 0
    assert worst_noted(case, errors).worst_position == 7


def test_spilled_and_resident_steps_are_the_same_to_the_bit(tmp_path):
    settings = BankUpdateSettings(0.0, 1e-6, 0.01)
    one = Case().step(tmp_path, settings, name="one")
    two = Case().step(tmp_path, settings, spilled=True, name="two")
    assert torch.equal(content(one.bank), content(two.bank))
    assert torch.equal(content(one.momentum), content(two.momentum))
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.gram, two.gram)


def test_sums_survive_a_checkpoint(tmp_path):
    case = Case()
    moments = case.moments()
    moments.sampled = 3
    for name, source in moments.arrays().items():
        arrays.write(tmp_path / name, source)
    other = EpochMoments.empty(Tiles((M, R, D), ROWS))
    other.restore(lambda name: tmp_path / name, moments.scalars())
    assert torch.equal(content(other.gradients), content(moments.gradients))
    assert other.sampled == 3
    for name in ("code_moment", "code_change_moment", "adapter_moment", "row_projector"):
        assert torch.equal(getattr(other, name), getattr(moments, name))
