"""Reading exported factors: any expert's reconstruction, without holding the rest.

Source: docs/design.md, section Export formats.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.errors import InputError
from globe_stream.factorization.compose import compose_sparse
from globe_stream.factorization.factor_files import BANK, CODES, INDEX
from globe_stream.factorization.factors_config import CONFIG, FactorGroupConfig, read_factors_config
from globe_stream.factorization.model_files import BankSizes
from globe_stream.factorization.packed_factors import (
    adapter_values,
    bank_values,
    plain_adapters,
)
from globe_stream.io.dtypes import TORCH_DTYPES, bytes_of
from globe_stream.io.open_file import OpenFile
from globe_stream.io.safetensors import TensorEntry, read_header
from globe_stream.kernels.quantize import orthonormal_rows

_PARTS = ("packed", "scales")
_TORCH = {**TORCH_DTYPES, "I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True)
class FactorGroup:
    """The experts that share a bank, and what their reconstruction needs besides it.

    `members` (N, 3) are layer, expert, shared.
    """

    key: str
    family: str
    prefix: str
    sizes: BankSizes
    offsets: Tensor
    indices: Tensor
    values: Tensor
    members: Tensor

    def code(self, position: int) -> tuple[Tensor, Tensor]:
        """Atoms (k,) int64 and values (k,) float32 of an expert."""
        start, stop = int(self.offsets[position]), int(self.offsets[position + 1])
        return self.indices[start:stop].long(), self.values[start:stop]

    def codes(self, positions: list[int]) -> Tensor:
        """Dense codes (len(positions), m) float32."""
        dense = torch.zeros(len(positions), self.sizes.bases)
        for row, position in enumerate(positions):
            indices, values = self.code(position)
            dense[row, indices] = values
        return dense


class Factors:
    """An export of factors in a folder; made by `load_factors`.

    Only codes and file headers are held. Every method reads what it returns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_factors_config(folder)
        self._entries = dict(self._all_entries())
        self.groups = tuple(self._group(key, value) for key, value in self.config.units.items())
        self._where = {
            (group.family, layer, bool(shared), expert): (group, position)
            for group in self.groups
            for position, (layer, expert, shared) in enumerate(group.members.tolist())
        }

    def reconstruct(self, family: str, layer: int, expert: int, *, shared: bool = False) -> Tensor:
        """W_hat (p, d) float32 = scale A phi(gain sum_j alpha_j B_j) + offset.

        Raises InputError when the export does not hold that expert.
        """
        group, position = self.find(family, layer, expert, shared=shared)
        hidden = self.hidden(group, position)
        if group.sizes.bits is None:
            matrix = self.adapter(group, position).float() @ hidden
        else:
            stored = adapter_values(*self.packed_adapter(group, position), group.sizes.rank)
            matrix = stored @ orthonormal_rows(hidden[None])[0]
        return matrix.mul_(group.sizes.scale).add_(group.sizes.offset)

    def find(
        self, family: str, layer: int, expert: int, *, shared: bool = False
    ) -> tuple[FactorGroup, int]:
        """The group that holds an expert, and its position there."""
        try:
            return self._where[family, layer, shared, expert]
        except KeyError:
            kind = "block of the shared expert" if shared else "expert"
            raise InputError(
                f"{self.folder}: holds no {family} matrix of layer {layer}, {kind} {expert}"
            ) from None

    def holds(self, family: str, layer: int, expert: int, *, shared: bool = False) -> bool:
        """Whether an expert is part of the export."""
        return (family, layer, shared, expert) in self._where

    def hidden(self, group: FactorGroup, position: int) -> Tensor:
        """H (r, d) float32 = phi(gain sum_j alpha_j B_j), reading only the atoms it needs."""
        mixture = torch.empty(group.sizes.rank, group.sizes.d)
        compose_sparse(*group.code(position), partial(self.atom, group), mixture)
        return group.sizes.phi.apply(mixture)

    def adapter(self, group: FactorGroup, position: int) -> Tensor:
        """A (p, r) of one expert, as stored; of one in few bits, float32 and made with its H."""
        if group.sizes.bits is None:
            return self._read(self._adapter_name(group, position))
        stored = adapter_values(*self.packed_adapter(group, position), group.sizes.rank)
        return plain_adapters(stored, self.hidden(group, position))

    def packed_adapter(self, group: FactorGroup, position: int) -> tuple[Tensor, Tensor]:
        """Bits (b, bytes) and scales (p, groups) of an adapter in few bits."""
        name = self._adapter_name(group, position)
        return self._read(f"{name}.packed"), self._read(f"{name}.scales")

    def atom(self, group: FactorGroup, number: int) -> Tensor:
        """Atom `number` (r, d) of a unit's bank, as stored; of one in few bits, float32."""
        if group.sizes.bits is None:
            return self._row(f"{group.prefix}.bank", number)
        packed, scales = (self._row(f"{group.prefix}.bank.{x}", number) for x in _PARTS)
        return bank_values(packed, scales, group.sizes.d)

    def bank(self, group: FactorGroup) -> Tensor:
        """The whole bank (m, r, d) of a unit, as `atom` has it."""
        if group.sizes.bits is None:
            return self._read(f"{group.prefix}.bank")
        return bank_values(*self.packed_bank(group), group.sizes.d)

    def packed_bank(self, group: FactorGroup) -> tuple[Tensor, Tensor]:
        """Bits (m, r, b, bytes) and scales (m, r, groups) of a bank in few bits."""
        name = f"{group.prefix}.bank"
        return self._read(f"{name}.packed"), self._read(f"{name}.scales")

    def _adapter_name(self, group: FactorGroup, position: int) -> str:
        layer, expert, shared = group.members[position].tolist()
        kind = "shared_experts" if shared else "experts"
        return f"layers.{layer}.{kind}.{expert}.{group.family}.adapter"

    def _row(self, name: str, number: int) -> Tensor:
        """Part `number` of the first dimension of a tensor."""
        entry = self._entries[name]
        each = entry.nbytes // entry.shape[0]
        return _read_range(entry, entry.start + number * each, entry.shape[1:])

    def _read(self, name: str) -> Tensor:
        entry = self._entries[name]
        return _read_range(entry, entry.start, entry.shape)

    def _all_entries(self) -> Iterator[tuple[str, TensorEntry]]:
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        for name in (BANK, CODES, *sorted(set(index["weight_map"].values()))):
            for entry in read_header(self.folder / name).tensors:
                yield entry.name, entry

    def _group(self, key: str, described: FactorGroupConfig) -> FactorGroup:
        name = described.tensors
        return FactorGroup(
            key,
            described.family,
            name,
            described,
            self._read(f"{name}.offsets"),
            self._read(f"{name}.indices"),
            self._read(f"{name}.values"),
            self._read(f"{name}.experts"),
        )


def load_factors(path: str | Path) -> Factors:
    """Open the folder of an export of factors.

    Raises InputError when `path` is no complete export, or a file of it is damaged.
    """
    folder = Path(path)
    for name in (CONFIG, INDEX, BANK, CODES):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: is no export of factors: {name} is missing. Make one with "
                "`globe-stream export`, in the format factors"
            )
    return Factors(folder)


def _read_range(entry: TensorEntry, start: int, shape: tuple[int, ...]) -> Tensor:
    values = torch.empty(shape, dtype=_TORCH[entry.dtype])
    with OpenFile(entry.path) as file:
        file.read_into(start, bytes_of(values))
    return values
