"""Which errors of an expert matter to its layer: the second moment of the layer's inputs.

For inputs X (t, d) of the experts of a layer, ||E X^T||_F^2 = tr(E X^T X E^T) is what an error
E (p, d) does to their outputs. Adapters are fitted in the metric

    M = X^T X / c + damping I,    c = tr(X^T X) / d

so that directions that the text at hand did not use keep a say.
Source: docs/design.md, section Calibration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.errors import GlobeError
from globe_stream.io.closing import Closing
from globe_stream.io.dtypes import TORCH_DTYPES, bytes_of
from globe_stream.io.file_digest import FileDigest
from globe_stream.io.open_file import OpenFile
from globe_stream.io.records import Record
from globe_stream.io.safetensors import TensorEntry

DAMPING = 0.1
"""Share of the identity in M, beside a moment whose mean diagonal is one."""
AddMoment = Callable[[int, Tensor], None]
"""Takes the number of a layer and X^T X (d, d) float32 of some of its inputs."""


@dataclass(frozen=True)
class Calibration(Record):
    """What adapters were fitted for: the texts, the tokens of them that were read, the damping."""

    texts: tuple[FileDigest, ...]
    tokens: int
    damping: float
    input_weighted_error: dict[str, float] = field(default_factory=dict)
    """By family, ||(W_hat - W) X^T||_F / ||W X^T||_F of what was written."""


@dataclass(frozen=True)
class InputMetric:
    """M (d, d) float64 on the CPU, of which `damping` times the identity is a part."""

    matrix: Tensor
    damping: float

    @classmethod
    def of(cls, moment: Tensor, damping: float) -> "InputMetric":
        """That of X^T X = `moment` (d, d); GlobeError where it is zero or not finite."""
        matrix = moment.cpu().double()
        mean = float(matrix.diagonal().mean())
        if not 0 < mean < torch.inf or not bool(torch.isfinite(matrix).all()):
            raise GlobeError("calibration: the inputs of a layer are zero, NaN or infinite")
        matrix.div_(mean).diagonal().add_(damping)
        return cls(matrix, damping)

    def energy(self, matrix: Tensor) -> float:
        """||E X^T||_F^2 / c for E = `matrix` (p, d), the identity left out."""
        exact = matrix.cpu().double()
        whole = torch.linalg.vecdot(exact @ self.matrix, exact).sum()
        return float(whole - self.damping * exact.square().sum())


class LayerMetrics(Closing):
    """The metric of every layer, from the sums `entries` (d, d) float32 of the file `path`.

    Memory: that of the last layer asked for, and while it is read half as much again.
    """

    def __init__(self, path: Path, entries: Mapping[int, TensorEntry], damping: float) -> None:
        self._entries, self._damping = entries, damping
        self._file = OpenFile(path)
        self._last: tuple[int, InputMetric] | None = None

    def of(self, layer: int) -> InputMetric:
        """The metric of a layer."""
        if self._last is None or self._last[0] != layer:
            self._last = None
            entry = self._entries[layer]
            moment = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
            self._file.read_into(entry.start, bytes_of(moment))
            self._last = layer, InputMetric.of(moment, self._damping)
        return self._last[1]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
