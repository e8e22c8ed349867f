"""A group of a run with all that its reconstruction needs: state, codes, where its bank is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.factorization.activation import Activation
from globe_stream.factorization.error_sums import ErrorSums
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import GroupState
from globe_stream.store import arrays
from globe_stream.store.codes import unpack
from globe_stream.store.run import Run


@dataclass(frozen=True)
class PackedCodes:
    """Supports and values of N experts, expert after expert."""

    offsets: Tensor  # (N + 1,) int64
    indices: Tensor  # (nnz,) int32
    values: Tensor  # (nnz,) float32

    def of(self, position: int) -> tuple[Tensor, Tensor]:
        """Atoms and values of one expert."""
        start, stop = int(self.offsets[position]), int(self.offsets[position + 1])
        return self.indices[start:stop], self.values[start:stop]

    def moment(self, bases: int) -> Tensor:
        """sum_i alpha_i alpha_i^T (m, m) float32 over all experts, with m = `bases`."""
        dense = unpack(self.offsets.diff(), self.indices, self.values, bases)
        return dense.T @ dense


@dataclass(frozen=True)
class FittedGroup:
    """One group of a run and everything its reconstruction needs.

    W_hat_i = scale A_i phi(gamma sum_j codes_ij B_j) + mean, with A_i refitted to the original.
    """

    group: ExpertGroup
    state: GroupState
    codes: PackedCodes
    bank: Path
    digests: Tensor | None = None

    def expected(self, positions: Sequence[int]) -> Tensor | None:
        """Digests (len(positions), 16) that the experts had when the run was seeded."""
        return None if self.digests is None else self.digests[list(positions)]

    @property
    def mean(self) -> float:
        """The recorded offset."""
        return self.state.mean

    @property
    def scale(self) -> float:
        """Standard deviation that the weights were divided by."""
        return self.state.scale

    @property
    def recorded_errors(self) -> ErrorSums:
        """Error and norm of the group's experts, as the run measured them."""
        return self.state.errors

    @property
    def normalization(self) -> Normalization:
        """The recorded mean and scale."""
        return Normalization(self.mean, self.scale)

    @property
    def activation(self) -> Activation:
        """phi and its gain."""
        state = self.state
        return Activation(state.activation, state.activation_lambda, state.gamma)

    @property
    def ridge(self) -> float:
        """Relative ridge of the adapters."""
        return self.state.lambda_a


def read_codes(run: Run, key: str) -> PackedCodes:
    """The codes of group `key`."""
    count, indices, values = (
        torch.from_numpy(arrays.read(run.array(f"{key}/codes/{name}")))
        for name in ("count", "indices", "values")
    )
    offsets = torch.zeros(len(count) + 1, dtype=torch.int64)
    offsets[1:] = count.long().cumsum(0)
    return PackedCodes(offsets, indices, values)
