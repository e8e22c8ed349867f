"""Spherical k-means in Gram space.

Source: docs/design.md, section Seeding methods; Dhillon and Modha, "Concept Decompositions for
Large Sparse Text Data Using Clustering" (2001); Arthur and Vassilvitskii, "k-means++" (2007).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.errors import InputError, option
from globe_stream.seeding.methods.base import Atoms, SeedOptions, check_count, finish
from globe_stream.seeding.methods.gram_view import GramView

SAME_PROXY = 1e-9


@dataclass(frozen=True)
class Clusters:
    """A partition of the proxies and its unit-norm centres."""

    labels: Tensor  # (N,) int64
    combination: Tensor  # (N, m): centre k = sum_i P_ik x_i
    objective: float  # sum_i cos(x_i, centre of i), to be maximised
    iterations: int
    reseeded: int  # empty clusters given a proxy of their own


def spherical_kmeans(view: GramView, count: int, options: SeedOptions) -> Atoms:
    """Atoms are the centres of spherical k-means clusters of the proxies.

    Raises:
        InputError: more atoms than experts, or than distinct proxies.
    """
    check_count(view, count)
    best = cluster(view.matrix(), count, options, options.generator())
    sizes = torch.bincount(best.labels, minlength=count)
    stats = {
        "kmeans/objective": best.objective,
        "kmeans/iterations": best.iterations,
        "kmeans/reseeded": best.reseeded,
        "kmeans/largest_cluster": int(sizes.max()),
    }
    return finish(view, best.combination, stats)


def cluster(gram: Tensor, count: int, options: SeedOptions, generator: torch.Generator) -> Clusters:
    """Initialise and run Lloyd's iteration on the unit-diagonal Gram matrix (N, N)."""
    centres = first_centres(gram, count, options, generator)
    return lloyd(gram, centres, options.config.kmeans_iterations)


def first_centres(
    gram: Tensor, count: int, options: SeedOptions, generator: torch.Generator
) -> Tensor:
    """Positions (count,) of the proxies that serve as first centres.

    k-means++ draws each with probability proportional to the squared distance ``2 - 2 cos`` to
    the nearest centre so far, and keeps the best of ``2 + log(count)`` draws; farthest-first
    takes the farthest proxy.

    Raises:
        InputError: fewer distinct proxies than centres.
    """
    chosen = torch.zeros(count, dtype=torch.int64)
    chosen[0] = torch.randint(gram.shape[0], (), generator=generator)
    distance = 1 - gram[chosen[0]]
    trials = 2 + int(math.log(count))
    for k in range(1, count):
        if float(distance.max()) <= SAME_PROXY:
            raise InputError(
                f"k-means: {count} bases asked of {k} distinct proxies; "
                f"give {option('bases')} {k} or fewer"
            )
        if options.config.kmeans_init == "farthest":
            chosen[k] = distance.argmax()
        else:
            weights = torch.where(distance > SAME_PROXY, distance, 0.0)
            drawn = torch.multinomial(weights, trials, replacement=True, generator=generator)
            left = torch.minimum(distance[None, :], 1 - gram[drawn]).sum(1)
            chosen[k] = drawn[left.argmin()]
        distance = torch.minimum(distance, 1 - gram[chosen[k]])
    return chosen


def lloyd(gram: Tensor, centres: Tensor, iterations: int) -> Clusters:
    """Alternate assignment and centring from the proxies at `centres` until nothing changes.

    The objective never falls, but for a cluster that ran empty and is reseeded. Without iterations
    the proxies at `centres` are the result.
    """
    combination = torch.zeros(gram.shape[0], len(centres), dtype=gram.dtype)
    combination[centres, torch.arange(len(centres))] = 1.0
    labels = torch.full(gram.shape[:1], -1)
    reseeded = steps = 0
    while steps < iterations:
        steps += 1
        cosines = gram @ combination
        new = cosines.argmax(1)
        reseeded += _fill_empty(new, cosines)
        if torch.equal(new, labels):
            break
        labels = new
        combination = _centres(gram, labels, len(centres))
    cosines = gram @ combination
    labels = labels if steps else cosines.argmax(1)
    cosines = cosines.gather(1, labels[:, None])
    return Clusters(labels, combination, float(cosines.sum()), steps, reseeded)


def _centres(gram: Tensor, labels: Tensor, count: int) -> Tensor:
    """Normalised sums of the members: (N, count)."""
    members = torch.nn.functional.one_hot(labels, count).to(gram.dtype)
    lengths = (members * (gram @ members)).sum(0).clamp_min(0).sqrt()
    return members / lengths.clamp_min(torch.finfo(gram.dtype).tiny)


def _fill_empty(labels: Tensor, cosines: Tensor) -> int:
    """Give each empty cluster the worst-placed proxy of a cluster that can spare one, in place."""
    sizes = torch.bincount(labels, minlength=cosines.shape[1])
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    fit = cosines.gather(1, labels[:, None])[:, 0].clone()
    for k in empty:
        spare = sizes[labels] > 1
        worst = int(torch.where(spare, fit, torch.inf).argmin())
        sizes[labels[worst]] -= 1
        labels[worst], sizes[k], fit[worst] = k, 1, torch.inf
    return len(empty)
