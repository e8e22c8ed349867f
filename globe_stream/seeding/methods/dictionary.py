"""Non-negative dictionary learning in Gram space: MOD for the atoms, NNLS for the codes.

Source: method notes, section 3.2; Engan, Aase, Husoy, "Method of Optimal Directions for Frame
Design" (1999).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.kernels.nnls import nnls
from globe_stream.seeding.methods.atoms import Atoms, SeedOptions, check_count, finish
from globe_stream.seeding.methods.kmeans import cluster
from globe_stream.seeding.methods.view import GramView

MOD_RIDGE = 1e-6
SETTLED = 1e-6
DEAD_USE = 1e-12


@dataclass(frozen=True)
class Learned:
    """A dictionary and what its learning looked like."""

    combination: Tensor  # (N, m), unit-norm atoms
    errors: list[float]  # squared error of the proxies before each round and after the last
    replaced: int  # dead atoms given a new direction


def nn_dictionary(view: GramView, count: int, options: SeedOptions) -> Atoms:
    """Spherical k-means, then rounds of MOD and NNLS on the proxies.

    Raises:
        InputError: more atoms than experts, or than distinct proxies.
    """
    check_count(view, count)
    gram = view.matrix()
    start = cluster(gram, count, options, options.generator())
    learned = learn(gram, start.combination, options.dictionary_rounds, options.dictionary_support)
    stats = {
        "kmeans/objective": start.objective,
        "kmeans/iterations": start.iterations,
        "dictionary/rounds": len(learned.errors) - 1,
        "dictionary/first_error": (learned.errors[0] / view.size) ** 0.5,
        "dictionary/last_error": (learned.errors[-1] / view.size) ** 0.5,
        "dictionary/replaced": learned.replaced,
    }
    return finish(view, learned.combination, stats)


def learn(gram: Tensor, combination: Tensor, rounds: int, support: int | None = None) -> Learned:
    """Alternate NNLS codes A (N, m) and ``P = A (A^T A + ridge)^-1``, unit-norm atoms.

    With the tiny ridge the squared error ``||X - X P A^T||^2`` falls every round, but for dead
    atoms, which are replaced by the proxy that is explained worst. Stops when a round gains
    less than one part in a million.

    Args:
        gram: C (N, N).
        combination: P (N, m), unit-norm atoms to start from.
        rounds: at most.
        support: atoms that a code may use; None: all.
    """
    codes, left = _code(gram, combination, None, support)
    replaced = 0
    errors = [float(left.sum())]
    for _ in range(rounds):
        combination, dead = _update(gram, codes, left)
        replaced += dead
        codes, left = _code(gram, combination, None if dead else codes, support)
        errors.append(float(left.sum()))
        if not dead and errors[-2] - errors[-1] <= SETTLED * errors[-1]:
            break
    return Learned(combination, errors, replaced)


def _code(
    gram: Tensor, combination: Tensor, start: Tensor | None, support: int | None
) -> tuple[Tensor, Tensor]:
    """NNLS codes (N, m) and the squared error of every proxy (N,).

    With a limited support, the largest entries of the full code are kept and refitted; a proxy
    for which its old support does better keeps that, so the error cannot rise.
    """
    linear = gram @ combination
    atom_gram = combination.T @ linear
    codes = nnls(atom_gram, linear, start=start).codes
    if support is None or support >= codes.shape[1]:
        return codes, _errors(gram, atom_gram, linear, codes)
    codes = refit(atom_gram, linear, largest(codes, support))
    left = _errors(gram, atom_gram, linear, codes)
    if start is None:
        return codes, left
    kept = refit(atom_gram, linear, start > 0)
    kept_left = _errors(gram, atom_gram, linear, kept)
    return torch.where((kept_left < left)[:, None], kept, codes), torch.minimum(kept_left, left)


def largest(codes: Tensor, support: int) -> Tensor:
    """The `support` largest positive entries of every code: (N, m) boolean."""
    index = codes.topk(support, dim=1).indices
    return torch.zeros_like(codes, dtype=torch.bool).scatter(1, index, True) & (codes > 0)


def refit(atom_gram: Tensor, linear: Tensor, mask: Tensor) -> Tensor:
    """NNLS codes (N, m) inside `mask`."""
    return nnls(atom_gram, linear, mask=mask).codes


def _errors(gram: Tensor, atom_gram: Tensor, linear: Tensor, codes: Tensor) -> Tensor:
    gain = (codes * (2 * linear - codes @ atom_gram)).sum(1)
    return (gram.diagonal() - gain).clamp_min(0)


def _update(gram: Tensor, codes: Tensor, left: Tensor) -> tuple[Tensor, int]:
    """MOD step with unit-norm atoms (N, m), and the number of dead atoms that were replaced."""
    moment = codes.T @ codes
    use = moment.diagonal()
    moment = moment + MOD_RIDGE * use.mean() * torch.eye(len(use), dtype=codes.dtype)
    combination = torch.linalg.solve(moment, codes.T).T.contiguous()
    dead = (use <= DEAD_USE * use.max()).nonzero()[:, 0]
    worst = left.argsort(descending=True)[: len(dead)]
    combination[:, dead] = 0.0
    combination[worst, dead] = 1.0
    squares = (combination * (gram @ combination)).sum(0)
    return combination * squares.clamp_min(torch.finfo(codes.dtype).tiny).rsqrt(), len(dead)
