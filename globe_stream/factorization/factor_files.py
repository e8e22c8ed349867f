"""The files of an export of factors: their names, and how adapters are dealt to them.

Source: docs/design.md, section Export formats.
"""

from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.factorization.trained_run import FittedGroup, TrainedRun
from globe_stream.io.dtypes import ITEM_BYTES
from globe_stream.io.safetensors_writer import PlannedFile, plan_file

BANK, CODES = "bank.safetensors", "codes.safetensors"
INDEX = "adapters.safetensors.index.json"
SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class AdapterFile:
    """One shard of adapters: the plan, and for each tensor its group and position."""

    planned: PlannedFile
    members: tuple[tuple[FittedGroup, int], ...]


def adapter_name(expert: ExpertMatrix) -> str:
    """The tensor that holds the adapter of `expert`."""
    kind = "shared_experts" if expert.shared else "experts"
    return f"layers.{expert.layer}.{kind}.{expert.expert}.{expert.family}.adapter"


def plan_adapters(source: TrainedRun, out: Path, dtype: str, shard_bytes: int) -> list[AdapterFile]:
    """Deal the adapters, group by group and by position, to shards of at most `shard_bytes`."""
    shards: list[list[tuple[FittedGroup, int]]] = [[]]
    filled = 0
    for fitted in source.groups:
        sizes = fitted.group.sizes
        each = sizes.p * sizes.rank * ITEM_BYTES[dtype]
        for position in range(sizes.experts):
            if shards[-1] and filled + each > shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append((fitted, position))
            filled += each
    return [
        _adapter_file(out, number, len(shards), members, dtype)
        for number, members in enumerate(shards, start=1)
    ]


def _adapter_file(
    out: Path, number: int, count: int, members: list[tuple[FittedGroup, int]], dtype: str
) -> AdapterFile:
    tensors = [
        (
            adapter_name(fitted.group.experts[position]),
            dtype,
            (fitted.group.sizes.p, fitted.group.rank),
        )
        for fitted, position in members
    ]
    name = f"adapters-{number:05d}-of-{count:05d}.safetensors"
    return AdapterFile(plan_file(out / name, tensors, {"format": "pt"}), tuple(members))
