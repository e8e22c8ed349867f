"""Names that options take as values."""

from typing import Literal, get_args

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

ExportFormat = Literal["factors", "dense"]
DtypeName = Literal["bf16", "fp16", "fp32"]
