"""The digests that a run recorded of its experts' stored bytes, `<group>/digests`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from globe_stream.store import arrays
from globe_stream.store.run import Run

NAME = "digests"
"""The array (N, 16) uint8 of a group, in the order of its `experts`."""


def recorded(run: Run, group: str, members: Sequence[tuple[int, int, int]]) -> Tensor | None:
    """(len(members), 16) uint8: the digests of some experts of `group`; None before its first pass.

    A member is (layer, number, 1 if it is shared), as in the array `<group>/experts`.
    """
    if not run.has(f"{group}/{NAME}"):
        return None
    digests = torch.from_numpy(arrays.read(run.array(f"{group}/{NAME}")))
    rows = arrays.read(run.array(f"{group}/experts")).tolist()
    position = {tuple(row): k for k, row in enumerate(rows)}
    return digests[[position[member] for member in members]]
