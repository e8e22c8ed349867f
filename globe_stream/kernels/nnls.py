"""Batched non-negative least squares with one shared Gram matrix.

Accelerated projected gradient finds the support with nothing but matrix products; block
principal pivoting then solves exactly on it, and a primal active-set method solves the rows
(of ill-conditioned problems) on which pivoting cycles. Sources: Lawson and Hanson, "Solving
Least Squares Problems" (1974), chapter 23; Beck and Teboulle, "A Fast Iterative
Shrinkage-Thresholding Algorithm" (2009); O'Donoghue and Candes, "Adaptive Restart for
Accelerated Gradient Schemes" (2015); Kim and Park, "Fast Nonnegative Matrix Factorization:
An Active-Set-Like Method" (2011).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.kernels.active_set import descend_exactly
from globe_stream.kernels.double import double_device, widened
from globe_stream.kernels.entmax import entmax
from globe_stream.kernels.pivoting import Quadratic, pivot

FIRST_BURST = 300
CHECK_EVERY = 10
BATCH_ROWS = 1024
"""Rows that are solved together."""
PIVOT_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class NnlsResult:
    """Codes and how well they solve the problem."""

    codes: Tensor  # (b, m), dtype and device of `linear`
    iterations: int  # gradient steps taken, at most, for any row
    kkt_residual: (
        Tensor  # (b,) float64, where it was solved: projected-gradient residual over max |linear|
    )


def nnls(
    gram: Tensor,
    linear: Tensor,
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    simplex: bool = False,
    tolerance: float = 1e-11,
    max_iterations: int = 1000,
    polish: bool = True,
) -> NnlsResult:
    """Minimise ``1/2 a^T K a - b_i^T a`` over ``a >= 0`` for every row i.

    Works in float64 (on the CPU for devices without it). A row whose residual is not below
    ``tolerance`` after ``max_iterations`` is returned as it stands. ``polish`` solves rows that 300
    steps leave above the tolerance exactly on the support found; K then has the rounding error of
    the given dtypes, relative to the mean diagonal, added to its diagonal, so that dependent atoms
    do no harm. Memory: three (b, m) float64 arrays, twelve of (BATCH_ROWS, m), and 32 MiB.

    Args:
        gram: K (m, m), symmetric positive semidefinite.
        linear: b (b, m).
        start: (b, m) first guess; zeros (the uniform code on the simplex) without it.
        mask: (b, m) boolean; codes are zero where it is False.
        simplex: also require every code to sum to one.
        tolerance: on the relative projected-gradient residual; never below rounding error.
        max_iterations: gradient steps at most.

    Raises GlobeError for NaN or Inf, or an empty mask row on the simplex. Source: docs/design.md,
    section Codes.
    """
    problem = _problem(gram, linear, mask, simplex)
    guess = torch.zeros_like(problem.linear) if start is None else widened(start)
    if simplex and start is None:
        guess = guess + 1.0 / problem.linear.shape[1]
    codes, residual, steps = _solved(problem, guess, tolerance, max_iterations, polish)
    return NnlsResult(codes.to(linear.dtype).to(linear.device), steps, residual)


def _problem(gram: Tensor, linear: Tensor, mask: Tensor | None, simplex: bool) -> Quadratic:
    """The problem in float64, where that can be had; GlobeError when it cannot be solved."""
    device = double_device(linear.device)
    problem = Quadratic(
        gram=widened(gram.detach()).to(device),
        linear=widened(linear.detach()),
        mask=None if mask is None else mask.to(device),
        simplex=simplex,
        jitter=max(float(torch.finfo(x.dtype).eps) for x in (gram, linear)),
    )
    _check(problem)
    return problem


def _solved(
    problem: Quadratic, guess: Tensor, tolerance: float, limit: int, polish: bool
) -> tuple[Tensor, Tensor, int]:
    """Codes, residuals and the most gradient steps of any row, BATCH_ROWS at a time."""
    lipschitz = max(float(torch.linalg.eigvalsh(problem.gram)[-1]), 1e-300)
    codes, residual, steps = torch.empty_like(problem.linear), problem.scale, 0
    for first in range(0, len(codes), BATCH_ROWS):
        rows = torch.arange(first, min(first + BATCH_ROWS, len(codes)), device=codes.device)
        solver = _Solver(problem.rows(rows), max(tolerance, problem.jitter), lipschitz)
        codes[rows], residual[rows], taken = solver.solve(guess[rows], limit, polish)
        steps = max(steps, taken)
    return codes, residual, steps


def _check(problem: Quadratic) -> None:
    if not bool(torch.isfinite(problem.gram).all() and torch.isfinite(problem.linear).all()):
        raise GlobeError("nnls: the Gram matrix or the linear term holds NaN or Inf")
    if problem.simplex and problem.mask is not None and not bool(problem.mask.any(1).all()):
        raise GlobeError("nnls: a mask row allows no atom, so no code on the simplex exists")


class _Solver:
    """Gradient bursts, each followed by an exact solve, on the rows still unsolved."""

    def __init__(self, problem: Quadratic, tolerance: float, lipschitz: float) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self.pivot_tolerance = max(tolerance, PIVOT_TOLERANCE)
        self.lipschitz = lipschitz

    def solve(self, guess: Tensor, limit: int, polish: bool) -> tuple[Tensor, Tensor, int]:
        codes = self.project(self.problem, guess)
        residual = torch.full(codes.shape[:1], torch.inf, dtype=codes.dtype, device=codes.device)
        open_rows = torch.arange(codes.shape[0], device=codes.device)
        taken, burst = 0, FIRST_BURST if polish else limit
        while taken < limit and open_rows.numel():
            part = self.problem.rows(open_rows)
            found, steps = self.descend(part, codes[open_rows], min(burst, limit - taken))
            error = self.residual(part, found)
            done = error <= self.tolerance
            if polish and not bool(done.all()):
                self.polish(part, found, error, done)
            codes[open_rows], residual[open_rows] = found, error
            open_rows = open_rows[~done]
            taken, burst = taken + steps, 2 * burst
        if limit <= 0:
            residual = self.residual(self.problem, codes)
        return codes, residual, taken

    def descend(self, part: Quadratic, codes: Tensor, limit: int) -> tuple[Tensor, int]:
        """Accelerated projected gradient with per-row adaptive restart; at most `limit` steps."""
        ahead, speed = codes, torch.ones_like(codes[:, :1])
        for step in range(1, limit + 1):
            new = self.project(part, ahead - part.gradient(ahead) / self.lipschitz)
            move = new - codes
            speed[((ahead - new) * move).sum(1) > 0] = 1.0
            faster = (1 + (1 + 4 * speed.square()).sqrt()) / 2
            ahead, codes, speed = torch.addcmul(new, (speed - 1) / faster, move), new, faster
            if step % CHECK_EVERY == 0 and bool(
                (self.residual(part, codes) <= self.tolerance).all()
            ):
                return codes, step
        return codes, limit

    def polish(self, part: Quadratic, codes: Tensor, error: Tensor, done: Tensor) -> None:
        """Solve the rows that are not done exactly, keeping what is better; all in place."""
        rows = (~done).nonzero()[:, 0]
        rest, before = part.rows(rows), codes[rows]
        exact, settled = pivot(rest, before, self.pivot_tolerance)
        left = (~settled).nonzero()[:, 0]
        if left.numel():
            exact[left], settled[left] = descend_exactly(
                rest.rows(left), before[left], self.pivot_tolerance
            )
        exact_error = self.residual(rest, exact)
        better = exact_error <= error[rows]
        codes[rows] = torch.where(better[:, None], exact, before)
        error[rows] = torch.where(better, exact_error, error[rows])
        done[rows] = (settled & better) | (error[rows] <= self.tolerance)

    def residual(self, part: Quadratic, codes: Tensor) -> Tensor:
        """Largest entry of the projected gradient step, in units of max |linear|; (b,)."""
        step = self.project(part, codes - part.gradient(codes) / self.lipschitz) - codes
        return step.abs().amax(1) * self.lipschitz / part.scale

    @staticmethod
    def project(part: Quadratic, point: Tensor) -> Tensor:
        if part.simplex:
            scores = point if part.mask is None else point.masked_fill(~part.mask, -torch.inf)
            return entmax(scores, alpha=2.0)
        positive = point.clamp_min(0)
        return positive if part.mask is None else positive * part.mask
