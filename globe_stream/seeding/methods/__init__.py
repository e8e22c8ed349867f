"""Every warm start, on the Gram matrix of the proxies alone: no data is read here.

A method is a function ``(view, count, options) -> Atoms``; adding one is one entry in REGISTRY.
Source: docs/design.md, section Seeding methods.
"""

from collections.abc import Callable
from dataclasses import dataclass

from globe_stream.config import METHOD_FACTS, ProxyKind, SeedConfig
from globe_stream.engine.progress import ProgressCall
from globe_stream.errors import InputError, option
from globe_stream.seeding.methods.base import Atoms, SeedOptions
from globe_stream.seeding.methods.gram_view import GramView, SupportsMatmul
from globe_stream.seeding.methods.greedy import residual_greedy
from globe_stream.seeding.methods.hybrid import hybrid
from globe_stream.seeding.methods.initial_codes import FittedCodes, codes_from_gram
from globe_stream.seeding.methods.kmeans import spherical_kmeans
from globe_stream.seeding.methods.mod import nn_dictionary
from globe_stream.seeding.methods.pca import gram_pca, randomized_pca

__all__ = [
    "REGISTRY",
    "Atoms",
    "FittedCodes",
    "GramView",
    "Method",
    "SeedOptions",
    "SupportsMatmul",
    "codes_from_gram",
    "gram_products",
    "proxies_for",
    "run_method",
]

LARGEST_DENSE = 8192
"""Beyond so many experts `rpca` works on products with C instead of C (512 MiB) itself."""


@dataclass(frozen=True)
class Method:
    """How a seeding method is carried out; `config.METHOD_FACTS` says what else is known of it."""

    atoms: Callable[[GramView, int, SeedOptions], Atoms]
    streams: bool = False  # needs only products with C


REGISTRY: dict[str, Method] = {
    "ts_pca": Method(gram_pca),
    "left_gram_pca": Method(gram_pca),
    "rpca": Method(randomized_pca, streams=True),
    "spherical_kmeans": Method(spherical_kmeans),
    "residual_greedy": Method(residual_greedy),
    "hybrid": Method(hybrid),
    "svd": Method(spherical_kmeans),
    "nn_dictionary": Method(nn_dictionary),
}


def proxies_for(method: str, asked: ProxyKind | None = None) -> ProxyKind:
    """The kind of proxies for `method`: `asked`, or its default.

    Raises:
        InputError: proxies that the method does not work on.
    """
    allowed = METHOD_FACTS[method].proxies
    if asked is None:
        return allowed[0]
    if asked not in allowed:
        raise InputError(
            f"{option('proxies')} {asked} does not go with {option('method')} {method}; "
            f"use {' or '.join(allowed)}"
        )
    return asked


def gram_products(config: SeedConfig, experts: int, bases: int) -> int | None:
    """How many vectors C is multiplied with for m = `bases` where C (N, N) is never formed.

    None where the method of `config` takes C itself, or N = `experts` are few enough for it.
    """
    if not REGISTRY[config.method].streams or experts <= LARGEST_DENSE:
        return None
    return min(bases + config.oversampling, experts)


def run_method(
    config: SeedConfig, view: GramView, count: int, progress: ProgressCall | None = None
) -> Atoms:
    """Make `count` atoms by the method and with the options of `config`.

    `progress` is called after every round of a method that learns in rounds.

    Raises:
        InputError: see the methods.
    """
    return REGISTRY[config.method].atoms(view, count, SeedOptions(config, progress))
