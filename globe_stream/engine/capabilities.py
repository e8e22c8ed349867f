"""What a device can do, found out at start-up: small problems, compared with the CPU in float64.

What every pass needs (products, sums, elementwise operations) decides whether a device can be used;
a dense solver that it lacks is left to the CPU. Source: docs/design.md, section Devices.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from globe_stream.kernels.reductions import LONGEST_SUM

TOLERANCE = 1e-4
OLDEST_FOR_MPS = (2, 9)
"""Torch before 2.9 gave wrong triangles of strided matrices on MPS (pytorch issue 156658)."""
_LONG = 40_000

Operation = Callable[[Tensor], Tensor]


def device_fault(name: str) -> str | None:
    """Why device `name` (cuda, mps) cannot be used, in a few words, or None."""
    backend = torch.cuda if name == "cuda" else torch.backends.mps
    if not backend.is_available():
        return "is not available"
    if name == "mps" and torch_version() < OLDEST_FOR_MPS:
        return f"needs torch {'.'.join(map(str, OLDEST_FOR_MPS))} or newer, not {torch.__version__}"
    return basic_fault(torch.device(name))


def torch_version() -> tuple[int, int]:
    """Major and minor number of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def basic_fault(device: torch.device) -> str | None:
    """The first operation that every pass needs and that `device` lacks or gets wrong, or None."""
    found = faults(BASIC, device, torch.randn(3, 6, 10, generator=_generator()))
    found |= faults(
        {"long sums": _long_gram}, device, torch.randn(32, _LONG, generator=_generator())
    )
    return next((f"{name}: {fault}" for name, fault in found.items()), None)


def solver_faults(device: torch.device) -> dict[str, str]:
    """Why dense solvers cannot be used on `device`, by their names; those that can are left out."""
    matrices = torch.randn(2, 24, 40, generator=_generator())
    return faults(SOLVERS, device, matrices @ matrices.mT + torch.eye(24))


def faults(
    operations: Mapping[str, Operation], device: torch.device, values: Tensor
) -> dict[str, str]:
    """What is wrong with each of `operations` of `values` on `device`, compared with the CPU."""
    found = {}
    for name, operation in operations.items():
        expected = operation(values).double()
        try:
            result = operation(values.to(device)).cpu().double()
        except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
            found[name] = " ".join(str(error).split())[:100]
            continue
        error_size = float((result - expected).norm() / expected.norm())
        if not error_size <= TOLERANCE:
            found[name] = f"wrong by {error_size:.0e}"
    return found


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _long_gram(block: Tensor) -> Tensor:
    gram = torch.zeros(len(block), len(block), device=block.device)
    for start in range(0, block.shape[1], LONGEST_SUM):
        part = block[:, start : start + LONGEST_SUM]
        gram += part @ part.T
    return gram


def _into_a_part(x: Tensor) -> Tensor:
    """A product written into columns of a larger matrix, as mixtures are composed."""
    whole = x.new_zeros(6, 4, 6)
    torch.mm(x[0], x[1].T, out=whole[:, 1:3].view(6, -1)[:, :6])
    return whole


def _in_place(x: Tensor) -> Tensor:
    changed = x.clone()
    changed.diagonal(dim1=1, dim2=2).add_(1.0)
    changed[0].zero_()
    changed[1].mul_(2.0).div_(3.0).sub_(x[2], alpha=0.5)
    changed[2, 1:3].addmm_(x[0, :2, :6], x[1], alpha=2.0)
    changed[:, :, 0].copy_(x[:, :, 1])
    return changed


def _chosen(x: Tensor) -> Tensor:
    """Elements by index and mask, read and written."""
    changed = x.clone()
    rows = (x[:, 0, 0].abs() > 0).nonzero()[:, 0]
    changed[rows[:1]] = 0.0
    changed[torch.tensor([1])] = x[:1]
    return torch.cat([changed, torch.where(x > 0, x, -1.0)[[2, 0]]])


def _compared(x: Tensor) -> Tensor:
    flags = torch.stack([(x <= x + 1).all(), x.isfinite().all(), (x != 0).all(), (x > 9).any()])
    return torch.cat([flags.to(x.dtype), torch.ones_like(x[0, 0])])


BASIC: dict[str, Operation] = {
    "mm": lambda x: x[0] @ x[1].T,
    "mv": lambda x: x[0, 0, :6] @ x[1],
    "bmm": lambda x: torch.bmm(x, x.mT),
    "baddbmm": lambda x: torch.baddbmm(x, x[:, :, :6], x, alpha=-1),
    "baddbmm in place": lambda x: x.clone()[1:].baddbmm_(x[1:, :, :6], x[1:], alpha=-1),
    "a difference in place": lambda x: torch.sub(x[1:] * 2, x[1:], out=x.clone()[1:]),
    "matmul with a shared factor": lambda x: torch.matmul(x[0].T, x),
    "bfloat16": lambda x: torch.bmm(x.bfloat16(), x.mT.bfloat16()).float(),
    "product into a part": _into_a_part,
    "in place": _in_place,
    "chosen elements": _chosen,
    "comparisons": _compared,
    "sums": lambda x: torch.stack([x.sum(2).sum(1), x.mean(2)[:, 0], x.amax(2)[:, 0]]),
    "norms": lambda x: torch.linalg.vector_norm(torch.linalg.vector_norm(x, dim=2), dim=1),
    "inner products": lambda x: torch.linalg.vecdot(x, x, dim=2),
    "smallest": lambda x: torch.stack([x.amin(1).max(), x.abs().amax(2).clamp_min(0.5).sum()]),
    "curves": lambda x: torch.stack([x.tanh(), x.sigmoid(), torch.nn.functional.silu(x)]),
    "squares": lambda x: x.square() * x + 1,
    "one less a square": lambda x: torch.addcmul(x.new_ones(()), x, x, value=-0.5, out=x.clone()),
    "a sum in place": lambda x: torch.add(x[:2] * 2, x[:2], alpha=-0.5, out=x.clone()[:2]),
    "roots": lambda x: torch.stack([(x.abs() + 1).sqrt(), (x.abs() + 1).reciprocal(), 1 - x / 2]),
    "between": lambda x: torch.lerp(x, x.mT.mT.contiguous() * 2, 0.25),
    "largest": lambda x: x.flatten(1).argmax(1).to(x.dtype) + 1,
}
"""What every pass needs, by name, of X (3, 6, 10)."""

SOLVERS: dict[str, Operation] = {
    "cholesky": lambda g: torch.linalg.cholesky_ex(g)[0],
    "cholesky_solve": lambda g: torch.cholesky_solve(g, g.tril()),
    "inverse": torch.linalg.inv,
    "solve": lambda g: torch.linalg.solve_ex(g, g.mT)[0],
    "pinv": lambda g: torch.linalg.pinv(g, hermitian=True),
    "eigh": lambda g: torch.linalg.eigh(g)[0],
    "svd": lambda g: torch.linalg.svd(g)[1],
}
"""`dense_solvers.OPERATIONS` of symmetric positive definite matrices (2, 24, 24)."""
