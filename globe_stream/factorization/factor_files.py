"""The files of an export of factors: their names, and how adapters are dealt to them.

Source: docs/design.md, section Export formats.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.packed_factors import Spec, adapter_specs, bank_specs
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.dtypes import ITEM_BYTES
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import PlannedFile, plan_file

BANK, CODES = "bank.safetensors", "codes.safetensors"
INDEX = "adapters.safetensors.index.json"
SHARD_BYTES = 2 << 30
Bits = tuple[int, int] | None
"""Bits of bank and adapters, where they are quantised."""


@dataclass(frozen=True)
class AdapterFile:
    """One shard of adapters: the plan, and for each tensor its group and position."""

    planned: PlannedFile
    members: tuple[tuple[FittedGroup, int], ...]

    def entry(self, name: str) -> TensorEntry:
        """The tensor `name` of this shard."""
        return next(entry for entry in self.planned.entries if entry.name == name)


def adapter_name(expert: ExpertMatrix) -> str:
    """The tensor that holds the adapter of `expert`."""
    kind = "shared_experts" if expert.shared else "experts"
    return f"layers.{expert.layer}.{kind}.{expert.expert}.{expert.family}.adapter"


def bank_tensors(name: str, shape: tuple[int, int, int], dtype: str, bits: Bits) -> list[Spec]:
    """The tensors of a bank (m, r, d) whose names begin with `name`."""
    return [(name, dtype, shape)] if bits is None else bank_specs(f"{name}.", shape, bits[0])


def adapter_tensors(name: str, p: int, r: int, dtype: str, bits: Bits) -> list[Spec]:
    """The tensors of an adapter (p, r) whose names begin with `name`."""
    return [(name, dtype, (p, r))] if bits is None else adapter_specs(f"{name}.", p, r, bits[1])


def widest_first(specs: Iterable[Spec]) -> list[Spec]:
    """Tensors in an order in which each lies at a multiple of its element size."""
    return sorted(specs, key=lambda spec: -ITEM_BYTES[spec[1]])


def plan_adapters(
    source: TrainedRun, out: Path, dtype: str, bits: Bits, shard_bytes: int
) -> list[AdapterFile]:
    """Deal the adapters, unit by unit and by position, to shards of at most `shard_bytes`."""
    shards: list[list[tuple[FittedGroup, int]]] = [[]]
    tensors: list[list[Spec]] = [[]]
    filled = 0
    for fitted in source.groups:
        sizes = fitted.group.sizes
        for position, expert in enumerate(fitted.group.experts):
            specs = adapter_tensors(adapter_name(expert), sizes.p, sizes.rank, dtype, bits)
            each = sum(ITEM_BYTES[kind] * math.prod(shape) for _, kind, shape in specs)
            if shards[-1] and filled + each > shard_bytes:
                shards.append([])
                tensors.append([])
                filled = 0
            shards[-1].append((fitted, position))
            tensors[-1] += specs
            filled += each
    return [
        _adapter_file(out / f"adapters-{number:05d}-of-{len(shards):05d}.safetensors", *one)
        for number, one in enumerate(zip(shards, tensors, strict=True), start=1)
    ]


def _adapter_file(
    path: Path, members: list[tuple[FittedGroup, int]], tensors: list[Spec]
) -> AdapterFile:
    return AdapterFile(plan_file(path, widest_first(tensors), {"format": "pt"}), tuple(members))
