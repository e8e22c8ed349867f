"""Half PCA, half something else: balanced variance and diversity.

Source: docs/design.md, section Seeding methods.
"""

import torch

from globe_stream.seeding.methods.base import Atoms, SeedOptions, check_count, finish
from globe_stream.seeding.methods.gram_view import GramView
from globe_stream.seeding.methods.greedy import grow
from globe_stream.seeding.methods.kmeans import cluster
from globe_stream.seeding.methods.pca import nonnegative, principal_components


def hybrid(view: GramView, count: int, options: SeedOptions) -> Atoms:
    """``hybrid_ratio`` of the atoms from PCA, the others from k-means or greedy seeding.

    With "kmeans" the others are centres of spherical k-means clusters of all proxies. With
    "greedy" they replace the PCA atoms that explain least, the trailing ones: each is the top
    singular vector of what the kept PCA atoms and those before it leave.

    Raises:
        InputError: as for the methods it is made of.
    """
    check_count(view, count)
    from_pca = round(options.config.hybrid_ratio * count)
    others = count - from_pca
    generator = options.generator()
    parts = []
    if from_pca:
        components = principal_components(view, from_pca)
        kept = nonnegative(components, options.config.pca_signs)
        parts.append(finish(view, kept, {}).combination)
    if others and options.config.hybrid_variant == "kmeans":
        parts.append(cluster(view.matrix(), others, options, generator).combination)
    elif others:
        start = parts[0] if parts else torch.zeros(view.size, 0, dtype=torch.float64)
        parts = [grow(view, start, others, options.config, generator)[0]]
    return finish(view, torch.cat(parts, dim=1), {"hybrid/pca": from_pca, "hybrid/others": others})
