"""Few bits an element: levels in groups with a scale each, packed, and compensated rounding.

A group of consecutive elements shares a scale s, stored in bfloat16; an element is s times one of
2^b levels. From 5 bits on the levels are equally spaced; up to 4 bits they are those that quantise
a normal variable with the least squared error (Max, Quantizing for minimum distortion, 1960).
"""

import torch
from torch import Tensor

GROUP = 64
"""Elements that share a scale."""

_POSITIVE_LEVELS = {
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1519),
    4: (0.1284, 0.3880, 0.6566, 0.9421, 1.2560, 1.6177, 2.0686, 2.7321),
}
_SHRINKS = 12
_SHRINK_STEP = 0.05
_DAMPING = 1e-4


def levels(bits: int) -> Tensor:
    """The 2^b levels in rising order, symmetric, (2^b,) float32; the outermost are near 1 or more.

    From 5 bits on the outermost are 1 and -1; up to 4 they are those for variance 1.
    """
    if bits in _POSITIVE_LEVELS:
        positive = torch.tensor(_POSITIVE_LEVELS[bits])
        return torch.cat((-positive.flip(0), positive))
    return torch.linspace(-1, 1, 2**bits)


def quantize(values: Tensor, bits: int, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Level numbers (..., n) uint8 and scales (..., ceil(n / group)) bfloat16 of `values` (..., n).

    Of twelve scales, down from the one that reaches the group's largest element (or, up to 4 bits,
    around its root mean square), each group takes the one with the least squared error.
    """
    grouped = _grouped(values.float(), group)
    table = levels(bits).to(values.device)
    middles = (table[1:] + table[:-1]) / 2
    if bits in _POSITIVE_LEVELS:
        start = 1.3 * grouped.square().mean(-1, keepdim=True).sqrt()
    else:
        start = grouped.abs().amax(-1, keepdim=True)
    start = start.clamp_min(torch.finfo(torch.bfloat16).tiny)
    numbers, scales, least = None, None, None
    for step in range(_SHRINKS):
        scale = (start * (1 - _SHRINK_STEP * step)).bfloat16()
        chosen = torch.bucketize(grouped / scale.float(), middles)
        error = (table[chosen] * scale.float() - grouped).square_().sum(-1, keepdim=True)
        if numbers is None or scales is None or least is None:
            numbers, scales, least = chosen.to(torch.uint8), scale, error
            continue
        better = error < least
        numbers = torch.where(better, chosen.to(torch.uint8), numbers)
        scales, least = torch.where(better, scale, scales), torch.minimum(error, least)
    assert numbers is not None
    assert scales is not None
    return numbers.flatten(-2)[..., : values.shape[-1]].contiguous(), scales.squeeze(-1)


def dequantize(numbers: Tensor, scales: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """The values (..., n) float32 of level numbers (..., n) and scales (..., ceil(n / group))."""
    values: Tensor = levels(bits).to(numbers.device)[numbers.long()]
    values *= scales.float().repeat_interleave(group, -1)[..., : values.shape[-1]]
    return values


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Level numbers (..., n) uint8 as bit planes (..., bits, ceil(n / 8)) uint8, lowest first."""
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % 8))
    eights = padded.unflatten(-1, (-1, 8))  # type: ignore[no-untyped-call]
    places = torch.arange(8, device=numbers.device)
    planes = [(((eights >> plane) & 1) << places).sum(-1) for plane in range(bits)]
    return torch.stack(planes, -2).to(torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The level numbers (..., count) uint8 of bit planes (..., bits, ceil(count / 8))."""
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    numbers: Tensor = torch.zeros(
        *packed.shape[:-2], count, dtype=torch.uint8, device=packed.device
    )
    for plane in range(packed.shape[-2]):
        ones = ((packed[..., plane, :, None] >> places) & 1).flatten(-2)[..., :count]
        numbers |= ones << plane
    return numbers


def quantize_atoms(
    atoms: Tensor, moment: Tensor, bits: int, group: int = GROUP
) -> tuple[Tensor, Tensor]:
    """Level numbers (m, t, d) and scales (m, t, ceil(d / group)) of atoms (m, t, d).

    Atoms are rounded one after the other, and each one's error is made up for in those to come as
    the second moment of the codes, `moment` (m, m) = sum_i alpha_i alpha_i^T, says that mixtures
    are spoilt least. Rows of atoms do not depend on each other. `atoms` is overwritten.
    Source: Frantar and others, GPTQ, 2022, with atoms in the place of input channels.
    """
    exact = moment.cpu().double()
    damped = exact + _DAMPING * exact.diagonal().mean() * torch.eye(len(exact)).double()
    order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    inverse = torch.linalg.inv(damped[order][:, order])
    factor = torch.linalg.cholesky(inverse, upper=True).float().to(atoms.device)
    width = -(-atoms.shape[2] // group)
    numbers = torch.empty(atoms.shape, dtype=torch.uint8, device=atoms.device)
    scales = torch.empty(*atoms.shape[:2], width, dtype=torch.bfloat16, device=atoms.device)
    for place, atom in enumerate(order.tolist()):
        numbers[atom], scales[atom] = quantize(atoms[atom], bits, group)
        error = atoms[atom] - dequantize(numbers[atom], scales[atom], bits, group)
        error /= factor[place, place]
        for later in range(place + 1, len(order)):
            atoms[order[later]].sub_(error, alpha=float(factor[place, later]))
    return numbers, scales


def orthonormal_rows(hidden: Tensor) -> Tensor:
    """Q = L^-1 H (k, r, d) float32 with H H^T = L L^T, for H (k, r, d): rows are orthonormal.

    L is the lower Cholesky factor, in float64 on the CPU, of H H^T with a millionth of its mean
    diagonal added, so it is unique and needs no storing. Time: r^2 d + r^3 / 3 an expert.
    """
    exact = hidden.detach().cpu().double()
    gram = exact @ exact.mT
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1)
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    factor = torch.linalg.cholesky(gram)
    rows = torch.linalg.solve_triangular(factor, exact, upper=False)
    found: Tensor = rows.float().to(hidden.device)
    return found


def _grouped(values: Tensor, group: int) -> Tensor:
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % group))
    grouped: Tensor = padded.unflatten(-1, (-1, group))  # type: ignore[no-untyped-call]
    return grouped
