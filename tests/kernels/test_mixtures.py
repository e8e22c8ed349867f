"""Mixtures of atoms against their definition in float64."""

import pytest
import torch

from globe_stream.kernels.mixtures import mixtures


def _problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (4, 9), one of them empty, atoms (9, 7, 12), and their mixtures in float64."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.rand(4, 9, generator=generator) * (torch.rand(4, 9, generator=generator) < 0.4)
    codes[2] = 0
    atoms = torch.randn(9, 7, 12, generator=generator).to(dtype)
    return codes, atoms, torch.einsum("km,mrd->krd", codes.double(), atoms.double())


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-7), (torch.float16, 3e-4), (torch.bfloat16, 2e-3)]
)
def test_only_the_result_is_rounded(dtype: torch.dtype, error: float) -> None:
    codes, atoms, expected = _problem(dtype)
    found = mixtures(codes, atoms)
    assert found.dtype == dtype
    assert (found.double() - expected).norm() < error * expected.norm()
    assert (expected.to(dtype).double() - expected).norm() < error * expected.norm()


def test_rows_do_not_depend_on_how_they_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, atoms, _ = _problem(torch.bfloat16)
    whole = mixtures(codes, atoms)
    monkeypatch.setattr("globe_stream.kernels.mixtures._TERMS", 60)
    assert torch.equal(mixtures(codes, atoms), whole)


def test_gradients_reach_codes_and_atoms() -> None:
    codes, atoms, _ = _problem(torch.float32)
    wanted = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(3))
    codes.requires_grad_()
    atoms.requires_grad_()
    (mixtures(codes, atoms) * wanted).sum().backward()
    of_codes = torch.einsum("krd,mrd->km", wanted, atoms.detach())
    torch.testing.assert_close(codes.grad, of_codes * (codes.detach() > 0))
    torch.testing.assert_close(atoms.grad, torch.einsum("km,krd->mrd", codes.detach(), wanted))
