"""What one epoch adds up, and the dictionary step that follows from it.

The bank minimises sum_i L_i ||sum_j alpha_ij B_j - S_i||^2 in the shared metric, S_i being where
expert i's mixture wants to be. With S_i = Z_i + M^-1 F_i C^-1 / L_i the right-hand side is

    sum_i L_i alpha_i (S_i - Z_i(new codes)) = M^-1 [sum_i alpha_i F_i] C^-1 + D B,

D = sum_i L_i alpha_i (old_i - alpha_i)^T, so one bank-sized sum of forces is all a pass keeps.
Source: warm-start guidelines, section H.2 (MOD); method.md section 4, step 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globe_stream.store import arrays
from globe_stream.store.tiles import Tiles
from globe_stream.engine.stream import Loader
from globe_stream.training.gradients import Direction

_SMALL = ("coupling", "drift", "metric", "complement", "worst_pull")


@dataclass
class EpochSums:
    """Sums over the experts seen so far in an epoch."""

    forces: Tiles  # (m, r, d) sum_i alpha_i F_i
    coupling: Tensor  # (m, m) float64: sum_i L_i alpha_i alpha_i^T
    drift: Tensor  # (m, m) float64: D above
    metric: Tensor  # (r, r) sum_i gamma^2 A_i^T A_i
    complement: Tensor  # (d, d) sum over sampled experts of the row-space projector
    worst_pull: Tensor  # (r, d) F_i / L_i of the expert with the largest error
    worst_error: float = -1.0
    worst_position: int = -1
    sampled: int = 0

    @classmethod
    def empty(cls, forces: Tiles) -> "EpochSums":
        """All zero, for a bank of the shape of `forces`."""
        m, r, d = forces.shape
        forces.zero()
        device = forces.device
        return cls(
            forces,
            torch.zeros(m, m, dtype=torch.float64),
            torch.zeros(m, m, dtype=torch.float64),
            torch.zeros(r, r, device=device),
            torch.zeros(d, d, device=device),
            torch.zeros(r, d, device=device),
        )

    def add(self, direction: Direction, old: Tensor, new: Tensor) -> None:
        """Take a batch's direction and its codes before and after, (b, m) each."""
        count = len(new)
        for tile, ((start, stop), values) in enumerate(self.forces):
            rows = direction.force[:, start:stop].reshape(count, -1)
            values.view(len(values), -1).addmm_(new.T, rows)
            self.forces.store(tile, values)
        weighted = (new * direction.weight[:, None]).double().cpu()
        self.coupling += weighted.T @ new.double().cpu()
        self.drift += weighted.T @ (old - new).double().cpu()

    def mean_complement(self) -> Tensor:
        """The mean of I - P_i over the sampled experts (d, d)."""
        eye = torch.eye(len(self.complement), device=self.complement.device)
        return eye - self.complement / max(1, self.sampled)

    def note_worst(self, positions: list[int], squared_error: Tensor, direction: Direction) -> None:
        """Remember the pull of the batch's worst expert if it is the worst so far.

        An expert without atoms has no pull and is passed over.
        """
        pulled = (direction.weight > torch.finfo(direction.weight.dtype).tiny).to(
            squared_error.device
        )
        errors = torch.where(pulled, squared_error, -1.0)
        worst = int(errors.argmax())
        if float(errors[worst]) > self.worst_error:
            self.worst_error = float(errors[worst])
            self.worst_position = positions[worst]
            torch.div(direction.force[worst], direction.weight[worst], out=self.worst_pull)

    def arrays(self) -> Mapping[str, arrays.Source]:
        """For a checkpoint inside the pass."""
        return {"forces": self.forces, **{name: getattr(self, name) for name in _SMALL}}

    def scalars(self) -> dict[str, Any]:
        """For a checkpoint inside the pass."""
        return {
            "sampled": self.sampled,
            "worst_error": self.worst_error,
            "worst_position": self.worst_position,
        }

    def restore(self, load: Loader, scalars: Mapping[str, Any]) -> None:
        """Return to a checkpoint inside the pass."""
        arrays.read_into(load("forces"), self.forces)
        for name in _SMALL:
            saved = torch.from_numpy(arrays.read(load(name)))
            getattr(self, name).copy_(saved)
        self.sampled = scalars["sampled"]
        self.worst_error = scalars["worst_error"]
        self.worst_position = scalars["worst_position"]
