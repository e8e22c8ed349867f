"""The seeding methods: what each does and costs, when to choose it, what it works on."""

from typing import Literal, NamedTuple, get_args

SeedMethod = Literal[
    "ts_pca",
    "left_gram_pca",
    "rpca",
    "spherical_kmeans",
    "residual_greedy",
    "hybrid",
    "svd",
    "nn_dictionary",
]
METHODS: tuple[SeedMethod, ...] = get_args(SeedMethod)

ProxyKind = Literal["rows", "left_gram", "svd", "procrustes"]

CLUSTERING = ("kmeans_init", "kmeans_iterations")
"""Options of whatever begins with clusters of proxies."""
GREEDY = ("greedy_ridge", "greedy_lasso")
"""Options of greedy atoms."""
_ANY: tuple[ProxyKind, ...] = ("left_gram", "rows", "svd", "procrustes")


class MethodFacts(NamedTuple):
    """One method: the proxies it works on, its own default first, and the options it reads.

    `summary` says what it does, what it costs beside the passes that all methods share (N experts,
    m atoms) and when to choose it.
    """

    proxies: tuple[ProxyKind, ...]
    options: tuple[str, ...]
    summary: str


METHOD_FACTS: dict[str, MethodFacts] = {
    "ts_pca": MethodFacts(
        ("rows",),
        ("pca_signs",),
        "principal components of selected rows. One eigenproblem of size N, the cheapest. "
        "For a quick look.",
    ),
    "left_gram_pca": MethodFacts(
        ("left_gram",),
        ("pca_signs",),
        "principal components of the experts projected on their common left basis. One "
        "eigenproblem of size N. When experts share a left basis.",
    ),
    "rpca": MethodFacts(
        _ANY,
        ("pca_signs", "oversampling", "power_iterations"),
        "the same components by a randomized range finder. A few products with m vectors, no "
        "N x N matrix in memory beyond 8,192 experts. For very many experts.",
    ),
    "spherical_kmeans": MethodFacts(
        _ANY,
        CLUSTERING,
        "centers of clusters of experts. N m a Lloyd iteration. When experts fall into groups.",
    ),
    "residual_greedy": MethodFacts(
        _ANY,
        GREEDY,
        "one atom at a time, each the direction that the others leave over. m power iterations "
        "and codings. Nearly as good as nn_dictionary in a third of its time.",
    ),
    "hybrid": MethodFacts(
        _ANY,
        ("hybrid_ratio", "hybrid_variant", "pca_signs", *CLUSTERING, *GREEDY),
        "part principal components, part cluster centers or greedy atoms. The cost of both. "
        "When some variation is common and some is of groups.",
    ),
    "svd": MethodFacts(
        ("svd",),
        CLUSTERING,
        "clusters of every expert's own singular rows. One SVD an expert, the slowest to "
        "prepare. As a baseline.",
    ),
    "nn_dictionary": MethodFacts(
        ("procrustes", "left_gram", "rows", "svd"),
        ("dictionary_rounds", "dictionary_support", *CLUSTERING),
        "a dictionary learned with non-negative codes, from cluster centers of proxies rotated "
        "to agree. Some hundred rounds on an N x N matrix, seconds for thousands of experts. "
        "The least error measured: the default.",
    ),
}


def method_help() -> str:
    """A paragraph on each method, for the help of a command line."""
    return "\n\n".join(f"{name}: {facts.summary}" for name, facts in METHOD_FACTS.items())


def without_effect(method: SeedMethod) -> tuple[str, ...]:
    """Options of other methods that `method` does not read."""
    all_of_them = dict.fromkeys(name for facts in METHOD_FACTS.values() for name in facts.options)
    return tuple(name for name in all_of_them if name not in METHOD_FACTS[method].options)
