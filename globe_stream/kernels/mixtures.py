"""Mixtures of atoms for inference: each expert reads the rows of its own atoms once, in their type.

A product of dense codes with the bank reads all atoms, and needs them copied where only some are
used; gathering and adding up rows does neither.
"""

import torch
from torch import Tensor

_TERMS = 1 << 20
"""Rows that one call adds up; its index has 4 bytes for each, its weights as many as an element."""


def mixtures(codes: Tensor, atoms: Tensor) -> Tensor:
    """Z (k, r, d) = sum_j codes_j B_j, of the atoms' type, for codes (k, m) and atoms (m, r, d).

    Sums are float32, and so in effect are codes: one that the atoms' type rounds is taken in two
    terms, itself and what is left. Reads support x r x d elements an expert. Gradients reach codes
    above zero and atoms.
    """
    m, r, d = atoms.shape
    experts, used = codes.detach().nonzero(as_tuple=True)
    weights, counts = codes[experts, used], torch.bincount(experts, minlength=len(codes))
    if atoms.itemsize < weights.itemsize:
        rounded = weights.to(atoms.dtype)
        weights = torch.stack((rounded, (weights - rounded).to(atoms.dtype)), 1).flatten()
        used, counts = used.repeat_interleave(2), 2 * counts
    index = torch.int32 if m * r < 1 << 31 else torch.int64
    starts = (counts.cumsum(0) - counts).to(index)
    step = max(1, _TERMS // max(1, len(used)))
    parts = []
    for first in range(0, r, step):
        rows = torch.arange(first, min(r, first + step), device=atoms.device, dtype=index)[:, None]
        parts.append(
            torch.nn.functional.embedding_bag(
                (used.to(index) * r + rows).flatten(),
                atoms.view(m * r, d),
                (starts + (rows - first) * len(used)).flatten(),
                mode="sum",
                per_sample_weights=weights.expand(len(rows), -1).flatten(),
            ).view(len(rows), len(codes), d)
        )
    return torch.cat(parts).transpose(0, 1)
