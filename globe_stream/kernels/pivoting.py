"""Block principal pivoting: the exact solve behind :mod:`globe_stream.kernels.nnls`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CHUNK_BYTES = 16 * 2**20
MAX_ROUNDS = 30
FULL_EXCHANGES = 3
SMALLEST_JITTER = 1e-13


@dataclass(frozen=True, slots=True)
class Quadratic:
    """Rows of ``1/2 a^T K a - b_i^T a`` over ``a >= 0`` (and ``sum a = 1`` if simplex)."""

    gram: Tensor  # (m, m) float64
    linear: Tensor  # (b, m) float64
    mask: Tensor | None  # (b, m) boolean, entries that may be positive
    simplex: bool
    jitter: float  # relative rounding error of the Gram matrix

    def rows(self, index: Tensor) -> "Quadratic":
        mask = None if self.mask is None else self.mask[index]
        return replace(self, linear=self.linear[index], mask=mask)

    def gradient(self, codes: Tensor) -> Tensor:
        return torch.addmm(self.linear, codes, self.gram, beta=-1)

    @property
    def scale(self) -> Tensor:
        """max |b_i| of every row (b,), never zero."""
        return self.linear.abs().amax(1).clamp_min(1e-300)


def pivot(problem: Quadratic, codes: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Solve every row exactly, starting from the support of `codes` (b, m).

    Variables with a negative value and atoms with a negative gradient change sides, all at
    once while that makes progress and one at a time when it stalls.

    Returns:
        Solutions (b, m), and which rows were solved (b,) boolean: the others (not settled
        within MAX_ROUNDS, or with a matrix that cannot be factored) keep their `codes`.
    """
    result = codes.clone()
    settled = torch.zeros_like(codes[:, 0], dtype=torch.bool)
    open_rows = torch.arange(codes.shape[0], device=codes.device)
    passive = codes > 0
    fewest = torch.full_like(open_rows, codes.shape[1] + 1)
    patience = torch.full_like(open_rows, FULL_EXCHANGES)
    for _ in range(MAX_ROUNDS):
        part = problem.rows(open_rows)
        values, multiplier = solve_on(part, passive)
        wrong = (passive & (values < 0)) | violations(part, passive, values, multiplier, tolerance)
        count = wrong.sum(1)
        factored = torch.isfinite(values).all(1)
        solved = factored & (count == 0)
        result[open_rows[solved]] = values[solved].clamp_min(0)
        settled[open_rows[solved]] = True
        going = factored & ~solved
        open_rows, passive, wrong, count = (x[going] for x in (open_rows, passive, wrong, count))
        if not open_rows.numel():
            break
        change, fewest, patience = _exchange(wrong, count, fewest[going], patience[going])
        passive = passive ^ change
    return result, settled


def _exchange(
    wrong: Tensor, count: Tensor, fewest: Tensor, patience: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries change sides: all wrong ones, or only the last when progress stalls."""
    better = count < fewest
    whole = better | (patience > 0)
    patience = torch.where(better, torch.full_like(patience, FULL_EXCHANGES), patience - 1)
    places = torch.arange(wrong.shape[1], device=wrong.device)
    last = (wrong * (places + 1)).argmax(1)
    single = places[None, :] == last[:, None]
    change = torch.where(whole[:, None], wrong, single)
    return change, torch.minimum(fewest, count), patience.clamp_min(0)


def violations(
    part: Quadratic, passive: Tensor, values: Tensor, multiplier: Tensor, tolerance: float
) -> Tensor:
    """Entries outside the support that would lower the objective: (b, m) boolean."""
    allowed = ~passive if part.mask is None else part.mask & ~passive
    slack = part.gradient(values) + multiplier[:, None]
    return allowed & (slack < -tolerance * part.scale[:, None])


def solve_on(part: Quadratic, passive: Tensor) -> tuple[Tensor, Tensor]:
    """Minimisers (b, m) with the other entries zero, and the simplex multipliers (b,).

    Rows are taken in order of support size, in chunks of at most CHUNK_BYTES of submatrices.
    """
    values = torch.zeros_like(part.linear)
    multiplier = torch.zeros_like(values[:, 0])
    sizes = passive.sum(1)
    order = sizes.argsort(stable=True)
    ordered_sizes = sizes[order].tolist()
    first = 0
    while first < len(ordered_sizes):
        last = _chunk_end(ordered_sizes, first)
        rows, size = order[first:last], max(ordered_sizes[last - 1], 1)
        chunk, chunk_multiplier = _solve_chunk(part.rows(rows), passive[rows], size)
        values[rows], multiplier[rows] = chunk, chunk_multiplier
        first = last
    return values, multiplier


def _chunk_end(sizes: list[int], first: int) -> int:
    """Largest end such that (end - first) submatrices of the last size fit; sizes ascend."""
    end = first + 1
    while end < len(sizes) and (end + 1 - first) * sizes[end] ** 2 * 8 <= CHUNK_BYTES:
        end += 1
    return end


def _solve_chunk(part: Quadratic, passive: Tensor, size: int) -> tuple[Tensor, Tensor]:
    index = passive.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
    inside = passive.gather(1, index)
    system = part.gram[index[:, :, None], index[:, None, :]]
    system = system * (inside[:, :, None] & inside[:, None, :])
    jitter = max(part.jitter, SMALLEST_JITTER) * float(part.gram.diagonal().mean())
    system.diagonal(dim1=1, dim2=2).add_(torch.where(inside, jitter, 1.0))
    sides = [part.linear.gather(1, index) * inside]
    if part.simplex:
        sides.append(inside.to(system.dtype))
    factor, info = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(torch.stack(sides, dim=2), factor)
    solved[info > 0] = torch.nan
    compact, multiplier = solved[:, :, 0], torch.zeros_like(solved[:, 0, 0])
    if part.simplex:
        multiplier = (compact.sum(1) - 1) / solved[:, :, 1].sum(1)
        compact = compact - multiplier[:, None] * solved[:, :, 1]
    full = torch.zeros_like(part.linear).scatter(1, index, compact * inside)
    return full, multiplier
