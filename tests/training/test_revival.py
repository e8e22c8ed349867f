"""An atom that no code uses comes back as what the worst-explained expert misses."""

import torch

from globe_stream.store.tiles import Tiles
from globe_stream.training.bank_update import DictionaryStep, step_bank
from globe_stream.training.gradients import Direction
from globe_stream.training.metric import Geometry, plain_gram
from globe_stream.training.moments import EpochSums

M, R, D, N = 4, 6, 10, 5


def step(codes: torch.Tensor, tmp_path):
    generator = torch.Generator().manual_seed(1)
    bank = Tiles((M, R, D), 4)
    for _, tile in bank:
        tile.normal_(generator=generator)
    forces = torch.randn(N, R, D, generator=generator)
    errors = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0], dtype=torch.float64)
    sums = EpochSums.empty(Tiles((M, R, D), 4))
    for part in (slice(0, 3), slice(3, N)):
        direction = Direction(forces[part], torch.full((len(forces[part]),), 2.0))
        sums.add(direction, codes[part], codes[part])
        sums.note_worst(list(range(N))[part], errors[part], direction)
    before = bank.items(0, M)
    stepped = step_bank(
        bank,
        None,
        sums,
        codes,
        plain_gram(bank),
        Geometry.identity(R, torch.device("cpu")),
        DictionaryStep(0.0, 1e-6, 0.0),
        tmp_path / "momentum",
    )
    return before, forces, stepped


def test_the_first_unused_atom_is_replaced(tmp_path):
    codes = torch.rand(N, M, generator=torch.Generator().manual_seed(2))
    codes[:, 2] = 0
    before, forces, stepped = step(codes, tmp_path)
    wanted = torch.tensordot(codes[3], before, 1) + forces[3] / 2
    found = stepped.bank.items(2, 3)[0]
    assert stepped.revived == 1
    torch.testing.assert_close(found, wanted / wanted.norm(), rtol=1e-5, atol=1e-6)
    assert not stepped.momentum.items(2, 3).any()


def test_no_atom_is_replaced_while_all_are_used(tmp_path):
    codes = torch.rand(N, M, generator=torch.Generator().manual_seed(2)) + 0.1
    before, forces, stepped = step(codes, tmp_path)
    solved = torch.linalg.solve(2 * codes.T @ codes, torch.tensordot(codes.T, forces, 1).flatten(1))
    wanted = before + solved.view(M, R, D)
    wanted = wanted / wanted.flatten(1).norm(dim=1)[:, None, None]
    assert stepped.revived == 0
    torch.testing.assert_close(stepped.bank.items(0, M), wanted, rtol=1e-3, atol=1e-4)
