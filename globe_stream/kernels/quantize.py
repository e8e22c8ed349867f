"""Few bits an element: groups with a scale each, packed, and compensated rounding.

A group of consecutive elements shares a scale s, stored in bfloat16. From 5 bits on an element is s
times one of 2^b equally spaced levels; up to 4 bits it is s times a value of a trellis code.
"""

import torch
from torch import Tensor

from globe_stream.kernels import trellis
from globe_stream.kernels.trellis import table_values

GROUP = 64
"""The least elements that share a scale, in rows that have as many."""

_SHRINKS = 12
_SHRINK_STEP = 0.05
_DAMPING = 1e-4


def group_count(width: int) -> int:
    """The groups of a row of `width` elements, all of the same size but for the last."""
    return max(1, width // GROUP)


def quantize(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Level numbers (..., n) uint8 and scales (..., group_count(n)) bfloat16 of `values` (..., n).

    Up to 4 bits the numbers are those of a trellis code along n, for the root mean square of each
    group, and the scale is then the one with the least squared error. From 5 bits on each group
    takes the best of twelve scales, down from the one that reaches its largest element.
    """
    grouped = _grouped(values.float())
    if bits in trellis.SHAPES:
        numbers, scales = _in_trellis(grouped, bits)
    else:
        numbers, scales = _in_levels(grouped, bits)
    return numbers.flatten(-2)[..., : values.shape[-1]].contiguous(), scales


def group_columns(width: int) -> list[slice]:
    """The columns of every group of a row of `width` elements."""
    count = group_count(width)
    each = -(-width // count)
    return [slice(k * each, min((k + 1) * each, width)) for k in range(count)]


def dequantize(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The values (..., n) float32 of level numbers (..., n) and scales (..., group_count(n))."""
    if bits in trellis.SHAPES:
        values = trellis.decode(numbers, bits)
    else:
        values = table_values(_levels(bits).to(numbers.device), numbers)
    width = values.shape[-1]
    each = -(-width // group_count(width))
    values *= scales.float().repeat_interleave(each, -1)[..., :width]
    return values


def _in_trellis(grouped: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    tiny = torch.finfo(torch.bfloat16).tiny
    spread = grouped.square().mean(-1, keepdim=True).sqrt().clamp_min(tiny)
    rows = (grouped / spread).flatten(-2)
    numbers = trellis.encode(rows.flatten(0, -2), bits).view(rows.shape)
    values = trellis.decode(numbers, bits).view(grouped.shape)
    scales = (grouped * values).sum(-1) / values.square().sum(-1).clamp_min(tiny)
    return numbers.view(grouped.shape), scales.bfloat16()


def _in_levels(grouped: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    table = _levels(bits).to(grouped.device)
    start = grouped.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.bfloat16).tiny)
    scales = start.bfloat16()
    numbers, least = _nearest_levels(grouped, scales.float(), table)
    for step in range(1, _SHRINKS):
        scale = (start * (1 - _SHRINK_STEP * step)).bfloat16()
        chosen, error = _nearest_levels(grouped, scale.float(), table)
        better = error < least
        numbers = torch.where(better, chosen, numbers)
        scales, least = torch.where(better, scale, scales), torch.minimum(error, least)
    return numbers.to(torch.uint8), scales.squeeze(-1)


def _nearest_levels(grouped: Tensor, scale: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The place int32 of the level nearest to each element, and the squared error of each group."""
    numbers = nearest_places(grouped / scale, table)
    errors = table_values(table, numbers).mul_(scale).sub_(grouped)
    return numbers, errors.square_().sum(-1, keepdim=True)


def nearest_places(values: Tensor, table: Tensor) -> Tensor:
    """The places int32 of the elements of `table` that are nearest to `values` (...).

    `table` is equally spaced from -1 to 1; of two as near it is the lower one. The place that the
    spacing gives is right but for its rounding, so it is compared with the middles beside it,
    which is several times faster than a search.
    """
    last, end = len(table) - 1, table.new_full((1,), torch.inf)
    places = ((values + 1) * (last / 2)).round_().clamp_(0, last).int()
    bounds = torch.cat((-end, (table[1:] + table[:-1]) / 2, end))
    below = values <= table_values(bounds, places)
    above = values > table_values(bounds, places + 1)
    return places.add_(above.int()).sub_(below.int())


def _levels(bits: int) -> Tensor:
    return torch.linspace(-1, 1, 2**bits)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Level numbers (..., n) uint8 as bit planes (..., bits, ceil(n / 8)) uint8, lowest first."""
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % 8))
    eights = padded.unflatten(-1, (-1, 8))  # type: ignore[no-untyped-call]
    places = torch.arange(8, device=numbers.device, dtype=torch.uint8)
    planes = [
        (((eights >> plane) & 1) << places).sum(-1, dtype=torch.uint8) for plane in range(bits)
    ]
    return torch.stack(planes, -2)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The level numbers (..., count) uint8 of bit planes (..., bits, ceil(count / 8)).

    Eight numbers at a time, the bits of a byte being the bytes of a word.
    """
    words = torch.zeros_like(packed[..., 0, :], dtype=torch.int64)
    spread = _spread_bits().to(packed.device)
    for plane in range(packed.shape[-2]):
        words |= table_values(spread, packed[..., plane, :]) << plane
    return words.view(torch.uint8)[..., :count]


def _spread_bits() -> Tensor:
    """Words (256,) int64 whose byte k, the lowest first, is bit k of their place."""
    places = torch.arange(8)
    bits = (torch.arange(256)[:, None] >> places) & 1
    return (bits << 8 * places).sum(1)


def quantize_atoms(atoms: Tensor, moment: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Level numbers (m, t, d) and scales (m, t, group_count(d)) of atoms (m, t, d).

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
    numbers = torch.empty(atoms.shape, dtype=torch.uint8, device=atoms.device)
    scales = torch.empty(
        *atoms.shape[:2], group_count(atoms.shape[2]), dtype=torch.bfloat16, device=atoms.device
    )
    for place, atom in enumerate(order.tolist()):
        numbers[atom], scales[atom] = quantize(atoms[atom], bits)
        error = atoms[atom] - dequantize(numbers[atom], scales[atom], bits)
        error /= factor[place, place]
        for later in range(place + 1, len(order)):
            atoms[order[later]].sub_(error, alpha=float(factor[place, later]))
    return numbers, scales


def orthonormal_rows(hidden: Tensor) -> Tensor:
    """Q = L^-1 H (k, r, d) float32 with H H^T = L L^T, for H (k, r, d): rows are orthonormal.

    L is unique, so it needs no storing; see `triangular`. Time: r^2 d + r^3 / 3 an expert.
    """
    return orthonormalised(hidden)[0]


def orthonormalised(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `orthonormal_rows`, and L (k, r, r) float64 on the CPU."""
    exact = hidden.detach().cpu().double()
    factor = triangular(exact)
    rows = torch.linalg.solve_triangular(factor, exact, upper=False)
    return rows.float().to(hidden.device), factor


def triangular(exact: Tensor) -> Tensor:
    """L (k, r, r), the lower Cholesky factor of H H^T, for H (k, r, d) float64 on the CPU.

    A millionth of the mean diagonal is added to H H^T.
    """
    gram = exact @ exact.mT
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1)
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    factor: Tensor = torch.linalg.cholesky(gram)
    return factor


def _grouped(values: Tensor) -> Tensor:
    count = group_count(values.shape[-1])
    each = -(-values.shape[-1] // count)
    padded = torch.nn.functional.pad(values, (0, count * each - values.shape[-1]))
    grouped: Tensor = padded.unflatten(-1, (count, each))  # type: ignore[no-untyped-call]
    return grouped
