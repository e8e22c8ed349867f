"""Adapters in a narrow dtype whose products with H stay close to those of the exact ones.

Rounding every entry of A by itself leaves an error that H H^T amplifies where the rows of H are
nearly dependent. Here columns are rounded one after another, and the error of each is made up for
by the columns that are still to come, as far as the products A H can tell them apart.
Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers" (2023), section 3.
"""

import torch
from torch import Tensor

BLOCK = 64
"""Columns that are rounded before the later ones are updated by one product."""
RIDGE = 1e-6
"""Share of the mean diagonal that is added to H H^T before it is inverted."""


def round_adapters(adapters: Tensor, hidden_gram: Tensor, dtype: torch.dtype) -> Tensor:
    """A (p, r) as `dtype` with ||(A - rounded) H||_F small, given H H^T (r, r).

    Columns of rows of H with more energy are rounded first. Operations: p r^2 + r^3.
    """
    if dtype == torch.float32:
        return adapters
    gram = hidden_gram.double().cpu()
    order = gram.diagonal().argsort(descending=True, stable=True)
    gram = gram[order][:, order]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    # Upper U with U^T U = gram^-1: row k says how later columns make up for an error in column k.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    factor = (factor / factor.diagonal()[:, None]).to(adapters)
    left, rounded = adapters[:, order], torch.empty_like(adapters, dtype=dtype)
    for first in range(0, left.shape[1], BLOCK):
        last = min(first + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, first:last])
        for k in range(first, last):
            column = left[:, k].to(dtype)
            rounded[:, order[k]] = column
            errors[:, k - first] = left[:, k] - column
            left[:, k + 1 : last] -= torch.outer(errors[:, k - first], factor[k, k + 1 : last])
        left[:, last:].addmm_(errors, factor[first:last, last:], alpha=-1)
    return rounded
