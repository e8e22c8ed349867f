"""Adapters of a layer on their way into a model's folder, as they are or quantised."""

from dataclasses import dataclass

from torch import Tensor

from globe_stream.export.model_plan import LayerFile
from globe_stream.factorization.adapters import AdapterFit
from globe_stream.io.dtypes import TORCH_DTYPES
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import SafetensorsWriter
from globe_stream.kernels.quantize import dequantize, orthonormal_rows, pack, quantize


@dataclass(frozen=True)
class AdapterPlace:
    """Where the adapters of one family of a layer go: stacked, or packed with scales.

    A quantised adapter is A L, with H H^T = L L^T: an error in it is as large in the weights, while
    one in A is enlarged by the condition of H. L is made anew from bank and code when it is read.
    """

    adapters: TensorEntry
    scales: TensorEntry | None
    bits: int

    @classmethod
    def of(
        cls, file: LayerFile, layer: int, family: str, bits: tuple[int, int] | None
    ) -> "AdapterPlace":
        """Those of `family` of `layer` in `file`."""
        adapters = file.entry(layer, f"{family}_{'adapters' if bits is None else 'packed'}")
        assert adapters is not None
        return cls(adapters, file.entry(layer, f"{family}_scales"), bits[1] if bits else 0)

    def write(
        self, out: SafetensorsWriter, row: int, fit: AdapterFit, weights: Tensor, scale: float
    ) -> float:
        """Write the adapter of the expert in `row`; its squared error on the original scale.

        `weights` (p, d) are the normalised ones that `fit` was made of, and `scale` is theirs.
        """
        if self.scales is None:
            adapter = fit.adapters[0] * scale
            self._put(out, self.adapters, row, adapter.to(TORCH_DTYPES[self.adapters.dtype]))
            return float(fit.squared_error[0].clamp_min(0)) * scale**2
        rows = orthonormal_rows(fit.hidden)[0]
        numbers, scales = quantize(weights @ rows.T * scale, self.bits)
        self._put(out, self.adapters, row, pack(numbers.flatten(), self.bits))
        self._put(out, self.scales, row, scales)
        stored = dequantize(numbers, scales, self.bits)
        return float((weights * scale - stored @ rows).norm().double().square())

    def _put(self, out: SafetensorsWriter, entry: TensorEntry, row: int, values: Tensor) -> None:
        out.write_tensor(entry.start + row * (entry.nbytes // entry.shape[0]), values.contiguous())
