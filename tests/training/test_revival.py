"""An atom that no code uses comes back as what the worst-explained expert misses."""

import torch

from globe_stream.store.tiles import Tiles
from globe_stream.training.bank_update import BankUpdateSettings, update_bank
from globe_stream.training.gradients import PreconditionedGradient
from globe_stream.training.metric import Metric, plain_gram
from globe_stream.training.moments import EpochMoments

M, R, D, N = 4, 6, 10, 5


def step(codes: torch.Tensor, tmp_path):
    generator = torch.Generator().manual_seed(1)
    bank = Tiles((M, R, D), 4)
    for _, tile in bank:
        tile.normal_(generator=generator)
    gradients = torch.randn(N, R, D, generator=generator)
    errors = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0], dtype=torch.float64)
    moments = EpochMoments.empty(Tiles((M, R, D), 4))
    for part in (slice(0, 3), slice(3, N)):
        preconditioned = PreconditionedGradient(
            gradients[part], torch.full((len(gradients[part]),), 2.0)
        )
        moments.add(preconditioned, codes[part], codes[part])
        moments.note_worst(list(range(N))[part], errors[part], preconditioned)
    before = bank.items(0, M)
    update = update_bank(
        bank,
        None,
        moments,
        codes,
        plain_gram(bank),
        Metric.identity(R, torch.device("cpu")),
        BankUpdateSettings(0.0, 1e-6, 0.0),
        tmp_path / "momentum",
    )
    return before, gradients, update


def test_the_first_unused_atom_is_replaced(tmp_path):
    codes = torch.rand(N, M, generator=torch.Generator().manual_seed(2))
    codes[:, 2] = 0
    before, gradients, update = step(codes, tmp_path)
    wanted = torch.tensordot(codes[3], before, 1) + gradients[3] / 2
    found = update.bank.items(2, 3)[0]
    assert update.revived == 1
    torch.testing.assert_close(found, wanted / wanted.norm(), rtol=1e-5, atol=1e-6)
    assert not update.momentum.items(2, 3).any()


def test_no_atom_is_replaced_while_all_are_used(tmp_path):
    codes = torch.rand(N, M, generator=torch.Generator().manual_seed(2)) + 0.1
    before, gradients, update = step(codes, tmp_path)
    solved = torch.linalg.solve(
        2 * codes.T @ codes, torch.tensordot(codes.T, gradients, 1).flatten(1)
    )
    wanted = before + solved.view(M, R, D)
    wanted = wanted / wanted.flatten(1).norm(dim=1)[:, None, None]
    assert update.revived == 0
    torch.testing.assert_close(update.bank.items(0, M), wanted, rtol=1e-3, atol=1e-4)
