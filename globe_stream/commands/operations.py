"""Operations of an epoch, counted from the sizes alone."""

from globe_stream.factorization.groups import GroupSizes
from globe_stream.training.epoch import PROBES


def epoch_operations(sizes: GroupSizes) -> float:
    """Floating-point operations of one surrogate epoch.

    For each expert: compose and both bank products 6 m r d; H H^T by halves 5/4 r^2 d; W H^T, the
    residual and A^T of it 6 p r d; the solve 2 r^2 p; 2 p r a curvature probe; Cholesky r^3 / 3.
    """
    m, r, p, d = sizes.bases, sizes.rank, sizes.p, sizes.d
    products = 6 * m * r * d + 1.25 * r * r * d + 6 * p * r * d
    each = products + 2 * r * r * p + 2 * PROBES * p * r + r**3 / 3
    return float(sizes.experts * each)
