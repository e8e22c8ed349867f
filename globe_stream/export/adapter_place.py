"""Adapters on their way into an export, rounded or quantised."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from globe_stream.export.written_errors import Written
from globe_stream.factorization.adapters import AdapterFit
from globe_stream.factorization.error_sums import ErrorSums
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.rounding import quantize_columns, round_columns
from globe_stream.io.dtypes import TORCH_DTYPES, bytes_of
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import SafetensorsWriter
from globe_stream.kernels.quantize import dequantize, orthonormal_rows, pack, quantize


@dataclass(frozen=True)
class AdapterPlace:
    """Where adapters go: the tensor of them, or those of their bits and scales.

    A stack of them, or one. A quantised adapter is A L, with H H^T = L L^T; see
    `factorization.packed_factors`.
    """

    adapters: TensorEntry
    scales: TensorEntry | None
    bits: int

    @classmethod
    def of(
        cls, entries: Mapping[str, TensorEntry], plain: str, packed: str, bits: int | None
    ) -> "AdapterPlace":
        """Those among `entries`: `plain`, or with the prefix `packed` what has `bits`."""
        if bits is None:
            return cls(entries[plain], None, 0)
        return cls(entries[f"{packed}packed"], entries[f"{packed}scales"], bits)

    def write(
        self,
        out: SafetensorsWriter,
        row: int,
        fit: AdapterFit,
        weights: Tensor,
        normalization: Normalization,
    ) -> Written:
        """Write the adapter of the expert in `row`; its squared errors on the original scale.

        `weights` (p, d) are the normalised ones that `fit` was made of. They are overwritten. The
        errors are those of what was written.
        """
        norm = 0.0
        if fit.metric is not None:
            norm = fit.metric.energy(normalization.undo_(weights))
            weights.sub_(normalization.mean)
        else:
            weights.mul_(normalization.scale)
        if self.scales is None:
            self._write_rounded(out, row, fit, weights, normalization.scale)
        else:
            self._write_quantised(out, row, fit, weights, normalization.scale)
        squared = float(weights.norm().double().square())
        if fit.metric is None:
            return Written(squared)
        return Written(squared, ErrorSums(fit.metric.energy(weights), norm))

    def _write_rounded(
        self, out: SafetensorsWriter, row: int, fit: AdapterFit, weights: Tensor, scale: float
    ) -> None:
        """Write scale A; `weights` become the residual."""
        adapter = (fit.adapters[0] * scale).float()
        dtype = TORCH_DTYPES[self.adapters.dtype]
        rounded = round_columns(adapter, fit.hidden_gram[0], dtype)
        _put(out, self.adapters, row, rounded)
        weights.addmm_(rounded.float(), fit.hidden[0], alpha=-1)

    def _write_quantised(
        self, out: SafetensorsWriter, row: int, fit: AdapterFit, weights: Tensor, scale: float
    ) -> None:
        """Write scale A L in few bits; `weights` become the residual."""
        assert self.scales is not None
        if fit.metric is None:
            rows = orthonormal_rows(fit.hidden)[0]
            numbers, scales = quantize(weights @ rows.T, self.bits)
        else:
            (rows,), (adapters,), (gram,) = fit.of_orthonormal_rows()
            numbers, scales = quantize_columns(scale * adapters, gram, self.bits)
        _put(out, self.adapters, row, pack(numbers.flatten(), self.bits))
        _put(out, self.scales, row, scales)
        weights.addmm_(dequantize(numbers, scales, self.bits), rows, alpha=-1)


def _put(out: SafetensorsWriter, entry: TensorEntry, row: int, values: Tensor) -> None:
    values = values.contiguous()
    out.write_tensor(entry.start + row * len(bytes_of(values)), values)
