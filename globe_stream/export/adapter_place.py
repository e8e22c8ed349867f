"""Adapters on their way into an export, rounded or quantised."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from globe_stream.factorization.adapters import AdapterFit
from globe_stream.factorization.rounding import round_columns
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
        self, out: SafetensorsWriter, row: int, fit: AdapterFit, weights: Tensor, scale: float
    ) -> float:
        """Write the adapter of the expert in `row`; its squared error on the original scale.

        `weights` (p, d) are the normalised ones that `fit` was made of, and `scale` is theirs. They
        are overwritten. The error is that of what was written.
        """
        weights.mul_(scale)
        if self.scales is None:
            adapter = fit.adapters[0] * scale
            dtype = TORCH_DTYPES[self.adapters.dtype]
            rounded = round_columns(adapter, fit.hidden_gram[0], dtype)
            _put(out, self.adapters, row, rounded)
            weights.addmm_(rounded.float(), fit.hidden[0], alpha=-1)
        else:
            rows = orthonormal_rows(fit.hidden)[0]
            numbers, scales = quantize(weights @ rows.T, self.bits)
            _put(out, self.adapters, row, pack(numbers.flatten(), self.bits))
            _put(out, self.scales, row, scales)
            weights.addmm_(dequantize(numbers, scales, self.bits), rows, alpha=-1)
        return float(weights.norm().double().square())


def _put(out: SafetensorsWriter, entry: TensorEntry, row: int, values: Tensor) -> None:
    values = values.contiguous()
    out.write_tensor(entry.start + row * len(bytes_of(values)), values)
