"""What one epoch adds up, and the dictionary step that follows from it.

The bank minimises sum_i L_i ||sum_j alpha_ij B_j - S_i||^2 in the shared metric, S_i being where
expert i's mixture wants to be. With S_i = Z_i + M^-1 F_i C^-1 / L_i the right-hand side is

    sum_i L_i alpha_i (S_i - Z_i(new codes)) = M^-1 [sum_i alpha_i F_i] C^-1 + D B,

D = sum_i L_i alpha_i (old_i - alpha_i)^T, so one bank-sized sum of gradients is all a pass keeps.
Source: docs/design.md, section Bank update.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.io.records import Scalars
from globe_stream.io.world import World
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader
from globe_stream.store.tiles import Tiles
from globe_stream.training.gradients import PreconditionedGradient

_SMALL = ("code_moment", "code_change_moment", "adapter_moment", "row_projector", "worst_step")


@dataclass
class EpochMoments:
    """Sums over the experts seen so far in an epoch."""

    gradients: Tiles  # (m, r, d) sum_i alpha_i F_i
    code_moment: Tensor  # (m, m) float64: sum_i L_i alpha_i alpha_i^T
    code_change_moment: Tensor  # (m, m) float64: D above
    adapter_moment: Tensor  # (r, r) sum over sampled experts of gamma^2 A^T A
    row_projector: Tensor  # (d, d) sum over sampled experts of the row-space projector
    worst_step: Tensor  # (r, d) F_i / L_i of the expert with the largest error
    worst_error: float = -1.0
    worst_position: int = -1
    sampled: int = 0

    @classmethod
    def empty(cls, gradients: Tiles) -> "EpochMoments":
        """All zero, for a bank of the shape of `gradients`."""
        m, r, d = gradients.shape
        gradients.zero()
        device = gradients.device
        return cls(
            gradients,
            torch.zeros(m, m, dtype=torch.float64),
            torch.zeros(m, m, dtype=torch.float64),
            torch.zeros(r, r, device=device),
            torch.zeros(d, d, device=device),
            torch.zeros(r, d, device=device),
        )

    def add(self, preconditioned: PreconditionedGradient, old: Tensor, new: Tensor) -> None:
        """Take a batch's direction and its codes before and after, (b, m) each."""
        count = len(new)
        for tile, ((start, stop), values) in enumerate(self.gradients):
            rows = preconditioned.gradient[:, start:stop].reshape(count, -1)
            values.view(len(values), -1).addmm_(new.T, rows)
            self.gradients.store(tile, values)
        weighted = (new * preconditioned.weight[:, None]).cpu().double()
        self.code_moment += weighted.T @ new.cpu().double()
        self.code_change_moment += weighted.T @ (old - new).cpu().double()

    def mean_adapter_moment(self) -> Tensor:
        """The mean of gamma^2 A^T A over the sampled experts (r, r)."""
        return self.adapter_moment / max(1, self.sampled)

    def mean_residual_projector(self) -> Tensor:
        """The mean of I - P_i over the sampled experts (d, d)."""
        eye = torch.eye(len(self.row_projector), device=self.row_projector.device)
        return eye - self.row_projector / max(1, self.sampled)

    def note_worst(
        self, positions: list[int], squared_error: Tensor, preconditioned: PreconditionedGradient
    ) -> None:
        """Remember the step of the batch's worst expert if it is the worst so far.

        An expert without atoms has no step and is passed over.
        """
        moving = (preconditioned.weight > torch.finfo(preconditioned.weight.dtype).tiny).to(
            squared_error.device
        )
        errors = torch.where(moving, squared_error, -1.0)
        worst = int(errors.argmax())
        if float(errors[worst]) > self.worst_error:
            self.worst_error = float(errors[worst])
            self.worst_position = positions[worst]
            torch.div(
                preconditioned.gradient[worst], preconditioned.weight[worst], out=self.worst_step
            )

    def reduce(self, world: World) -> None:
        """Take in the sums of all processes, but for the gradients (see `metric.precondition`)."""
        for values in (
            self.code_moment,
            self.code_change_moment,
            self.adapter_moment,
            self.row_projector,
        ):
            world.add_(values)
        every = world.gather((self.worst_error, self.worst_position, self.sampled))
        worst = max(range(world.size), key=lambda rank: every[rank][0])
        self.worst_error, self.worst_position, _ = every[worst]
        self.sampled = sum(sampled for _, _, sampled in every)
        world.broadcast_(self.worst_step, worst)

    def arrays(self) -> Mapping[str, arrays.Storable]:
        """For a checkpoint inside the pass."""
        return {"gradients": self.gradients, **{name: getattr(self, name) for name in _SMALL}}

    def scalars(self) -> Scalars:
        """For a checkpoint inside the pass."""
        return {
            "sampled": self.sampled,
            "worst_error": self.worst_error,
            "worst_position": self.worst_position,
        }

    def restore(self, load: Loader, scalars: Scalars) -> None:
        """Return to a checkpoint inside the pass."""
        arrays.read_into(load("gradients"), self.gradients)
        for name in _SMALL:
            saved = torch.from_numpy(arrays.read(load(name)))
            getattr(self, name).copy_(saved)
        self.sampled = int(scalars["sampled"])
        self.worst_error = scalars["worst_error"]
        self.worst_position = int(scalars["worst_position"])
