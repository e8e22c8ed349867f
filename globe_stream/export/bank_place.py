"""Banks on their way into an export, rounded or quantised so that mixtures stay close, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from globe_stream.export.staging import ExportWork
from globe_stream.factorization.bank_cache import Bank, WrittenBank
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.packed_bank import PackedBank, write_packed
from globe_stream.factorization.rounding import round_columns
from globe_stream.io.dtypes import TORCH_DTYPES
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import PlannedFile, SafetensorsWriter
from globe_stream.store.bank import StoredBank


@dataclass(frozen=True)
class BankPlace:
    """The tensors of one bank: its atoms, or their bits and scales."""

    atoms: TensorEntry
    scales: TensorEntry | None

    @classmethod
    def of(cls, entries: Mapping[str, TensorEntry], plain: str, packed: str) -> "BankPlace":
        """Those among `entries`: `plain`, or with the prefix `packed` what is quantised."""
        if plain in entries:
            return cls(entries[plain], None)
        return cls(entries[f"{packed}packed"], entries[f"{packed}scales"])

    def write(self, file: SafetensorsWriter, fitted: FittedGroup) -> None:
        """Write the bank of `fitted`."""
        moment = fitted.codes.moment(fitted.group.bases)
        with StoredBank(fitted.bank, resident=False) as bank:
            if self.scales is None:
                self._write_rounded(file, bank, moment)
            else:
                write_packed(file, bank, moment, self.atoms, self.scales)

    def open(self, path: Path, d: int, *, resident: bool) -> Bank:
        """The bank as it was written to `path`; atoms in few bits stay in memory if `resident`."""
        if self.scales is None:
            return WrittenBank(path, self.atoms)
        return PackedBank(path, self.atoms, self.scales, d, resident=resident)

    def _write_rounded(self, file: SafetensorsWriter, bank: StoredBank, moment: Tensor) -> None:
        dtype, (m, r, d) = TORCH_DTYPES[self.atoms.dtype], bank.shape
        for first, last in bank.row_ranges:
            values = bank.rows(first, last).view(m, -1).T
            rounded = round_columns(values, moment, dtype).T
            for atom, rows in enumerate(rounded):
                start = (atom * r + first) * d * dtype.itemsize
                file.write_tensor(self.atoms.start + start, rows)


@dataclass(frozen=True)
class BankFile:
    """The file `planned` that holds all banks of an export, at `places` by their groups' keys."""

    work: ExportWork
    planned: PlannedFile
    places: Mapping[str, BankPlace]

    def write(self, groups: Sequence[FittedGroup]) -> None:
        """Write the banks of `groups`, one after the other, unless the file is finished."""
        if self.work.record(self.work.name_of(self.planned)):
            return
        with self.work.writing(self.planned) as file:
            for fitted in groups:
                self.places[fitted.group.key].write(file, fitted)

    def open(self, fitted: FittedGroup, resident: bool) -> Bank:
        """The bank of a group as it was written; see `BankPlace.open`."""
        path = self.work.finished(self.work.name_of(self.planned))
        place = self.places[fitted.group.key]
        return place.open(path, fitted.group.sizes.d, resident=resident)
