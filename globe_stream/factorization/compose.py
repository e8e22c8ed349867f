"""Mixtures of atoms, Z_i = sum_j alpha_ij B_j: for a batch of dense codes, and for one expert.

Source: docs/design.md, section Problem.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from globe_stream.kernels.workspace import Workspace
from globe_stream.store.tiles import Tiles

Atom = Callable[[int], Tensor]
"""Atom number j as B_j (r, d), of any floating dtype; the next call may overwrite it."""


def compose(codes: Tensor, bank: Tiles, workspace: Workspace, name: str = "mixtures") -> Tensor:
    """Z (b, r, d) = sum_j codes_j B_j for codes (b, m) and a bank (m, r, d).

    One matrix product a tile of the bank; Z is the workspace's buffer `name`.
    """
    _, r, d = bank.shape
    mixtures = workspace.take(name, (len(codes), r, d))
    for (start, stop), tile in bank:
        rows = mixtures[:, start:stop].view(len(codes), -1)
        torch.mm(codes, tile.reshape(tile.shape[0], -1), out=rows)
    return mixtures


def compose_sparse(indices: Tensor, values: Tensor, atom: Atom, out: Tensor) -> Tensor:
    """Z (r, d) = sum_k values_k B_(indices_k) of one expert, written to `out` and returned.

    indices (k,) integers, values (k,), out (r, d) float32. Each atom is asked for once, in the
    order given, and summed in float32 whatever its dtype, so the bytes of Z depend on the code
    and the atoms only. Memory: `out` and one atom in float32.
    """
    out.zero_()
    for number, value in zip(indices.tolist(), values.tolist(), strict=True):
        out.add_(atom(number).float(), alpha=value)
    return out
