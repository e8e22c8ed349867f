"""A bank stored in few bits an element: written tile by tile, and read atom by atom."""

from pathlib import Path

import torch
from torch import Tensor

from globe_stream.factorization.packed_factors import bank_values
from globe_stream.io.dtypes import TORCH_DTYPES, bytes_of
from globe_stream.io.open_file import OpenFile
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import SafetensorsWriter
from globe_stream.kernels.quantize import pack, quantize_atoms
from globe_stream.store.bank import StoredBank

_TILE_BYTES = 32 << 20


def write_packed(
    file: SafetensorsWriter,
    bank: StoredBank,
    moment: Tensor,
    packed: TensorEntry,
    scales: TensorEntry,
) -> None:
    """Quantise `bank` (m, r, d) into `packed` (m, r, b, ceil(d / 8)) and `scales` (m, r, groups).

    `moment` (m, m) is the second moment of the codes; see `quantize_atoms`. Memory: a tile of rows
    of all atoms and three of one atom.
    """
    m, r, d = bank.shape
    step = max(1, _TILE_BYTES // (4 * m * d))
    for first in range(0, r, step):
        rows = torch.stack([bank.atom(atom)[first : first + step].clone() for atom in range(m)])
        numbers, factors = quantize_atoms(rows, moment, packed.shape[2])
        for atom in range(m):
            planes = pack(numbers[atom], packed.shape[2])
            for entry, values in ((packed, planes), (scales, factors[atom])):
                place = entry.start + (atom * r + first) * (entry.nbytes // (m * r))
                file.write_tensor(place, values.contiguous())


class PackedBank:
    """The bank (m, r, d) float32 that `packed` and `scales` of the file `path` stand for.

    Memory: m r d elements when `resident`, a few atoms otherwise.
    """

    def __init__(
        self, path: Path, packed: TensorEntry, scales: TensorEntry, d: int, *, resident: bool
    ) -> None:
        self.shape = (packed.shape[0], packed.shape[1], d)
        self._packed, self._scales = packed, scales
        self._file = OpenFile(path)
        count = self.shape[0] if resident else 0
        self._atoms = [self._read(number) for number in range(count)]

    def atom(self, number: int) -> Tensor:
        """Atom `number` (r, d)."""
        return self._atoms[number] if self._atoms else self._read(number)

    def close(self) -> None:
        """Close the file and give the memory back."""
        self._file.close()
        self._atoms = []

    def _read(self, number: int) -> Tensor:
        stored = []
        for entry in (self._packed, self._scales):
            values = torch.empty(entry.shape[1:], dtype=TORCH_DTYPES[entry.dtype])
            start = entry.start + number * (entry.nbytes // entry.shape[0])
            self._file.read_into(start, bytes_of(values))
            stored.append(values)
        return bank_values(stored[0], stored[1], self.shape[2])
