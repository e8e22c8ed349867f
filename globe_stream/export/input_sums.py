"""X^T X of the inputs of every layer's experts, added up batch by batch in a file.

Every batch writes the sums anew beside those before it, and its ledger row says which count: a kill
at any moment loses one batch. Memory: two matrices of a layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from globe_stream.export.staging import ExportWork
from globe_stream.factorization.input_metric import AddMoment, Calibration, LayerMetrics
from globe_stream.io.dtypes import bytes_of
from globe_stream.io.open_file import OpenFile
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import SafetensorsWriter, plan_file


class InputSource(Protocol):
    """What can run the checkpoint on a text."""

    @property
    def calibration(self) -> Calibration:
        """The texts, and how they are used."""

    @property
    def widths(self) -> Mapping[int, int]:
        """d of the inputs of every layer whose experts are replaced."""

    @property
    def price_bytes(self) -> int:
        """Expected peak memory of the process while it runs the checkpoint."""

    def gather(self, sums: "InputSums") -> None:
        """Add the batches of text to `sums` that are not in it yet."""


class InputSums:
    """The sums of the layers `widths` (layer to d), kept in the folder of an export's `work`."""

    def __init__(self, work: ExportWork, widths: Mapping[int, int]) -> None:
        self.work = work
        tensors = [(str(layer), "F32", (d, d)) for layer, d in sorted(widths.items())]
        self._planned = plan_file(work.out / "inputs", tensors)
        self._entries = {int(entry.name): entry for entry in self._planned.entries}
        if self.batches:
            work.check_gathered()

    @property
    def batches(self) -> int:
        """How many are in."""
        row = self.work.gathered()
        return 0 if row is None else row.steps

    @contextmanager
    def batch(self) -> Iterator[AddMoment]:
        """Add the next batch by calls of what is yielded; it counts once the block has ended."""
        with ExitStack() as opened:
            old = opened.enter_context(OpenFile(self._path)) if self.batches else None
            file = opened.enter_context(self.work.gathering(self._planned, self.batches + 1))
            seen: set[int] = set()

            def add(layer: int, product: Tensor) -> None:
                entry, values = self._entries[layer], product.cpu().float().contiguous()
                if layer in seen:
                    values += _read(entry, file)
                elif old is not None:
                    values += _read(entry, old)
                file.write_tensor(entry.start, values)
                seen.add(layer)

            yield add

    def metrics(self, damping: float) -> LayerMetrics:
        """The metric of every layer, of all that was added."""
        return LayerMetrics(self._path, self._entries, damping)

    @property
    def _path(self) -> Path:
        return self.work.gathered_path()


def _read(entry: TensorEntry, place: OpenFile | SafetensorsWriter) -> Tensor:
    values = torch.empty(entry.shape)
    place.read_into(entry.start, bytes_of(values))
    return values
