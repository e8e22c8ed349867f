"""Primal active-set method, batched: the slow and safe solve behind the NNLS kernel."""

import torch
from torch import Tensor

from globe_stream.kernels.pivoting import Quadratic, solve_on, violations

ROUNDS_PER_ATOM = 4


def descend_exactly(problem: Quadratic, codes: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Solve every row from the feasible `codes` (b, m); the objective never rises.

    Each round minimises on the current support. If that leaves the feasible set, the row moves
    to the boundary and drops the entries that reached zero; otherwise it moves there and adds
    the entry with the most negative gradient, until none is left.

    Returns:
        Codes (b, m), and which rows were solved (b,) boolean.

    Source: Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23.
    """
    result, support = codes.clone(), codes > 0
    solved = torch.zeros_like(codes[:, 0], dtype=torch.bool)
    rows = torch.arange(codes.shape[0], device=codes.device)
    for _ in range(ROUNDS_PER_ATOM * codes.shape[1]):
        part = problem.rows(rows)
        target, multiplier = solve_on(part, support)
        usable = torch.isfinite(target).all(1)
        inside = usable & (target >= 0).all(1)
        moved = _to_boundary(result[rows], target, usable)
        support = support & (moved > 0)
        result[rows] = moved
        adds = violations(part, support, moved, multiplier, tolerance) & inside[:, None]
        support = support | _steepest(part, moved, adds)
        finished = inside & ~adds.any(1)
        solved[rows[finished]] = True
        going = usable & ~finished
        rows, support = rows[going], support[going]
        if not rows.numel():
            break
    return result, solved


def _to_boundary(codes: Tensor, target: Tensor, usable: Tensor) -> Tensor:
    """The last feasible point on the way from `codes` to `target`, exact zeros at the boundary."""
    falling = target < 0
    ratios = torch.where(falling, codes / (codes - target), torch.inf)
    step = ratios.amin(1, keepdim=True).clamp_max(1.0)
    moved = torch.where(step >= 1.0, target, codes + step * (target - codes))
    moved = moved.masked_fill(falling & (ratios <= step), 0.0).clamp_min(0)
    return torch.where(usable[:, None], moved, codes)


def _steepest(part: Quadratic, codes: Tensor, candidates: Tensor) -> Tensor:
    """One-hot (b, m) of the candidate with the most negative gradient; empty without one."""
    slope = part.gradient(codes).masked_fill(~candidates, torch.inf)
    places = torch.arange(slope.shape[1], device=slope.device)
    return (places[None, :] == slope.argmin(1, keepdim=True)) & candidates
