"""The files of `export --format factors`: names, order and the description in globe_config.json.

Source: docs/design.md, section Export formats.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.factorization.trained_run import FittedGroup, TrainedRun
from globe_stream.io.dtypes import ITEM_BYTES
from globe_stream.io.safetensors_writer import PlannedFile, plan_file

BANK, CODES, CONFIG = "bank.safetensors", "codes.safetensors", "globe_config.json"
INDEX = "adapters.safetensors.index.json"
SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class AdapterFile:
    """One shard of adapters: the plan, and for each tensor its unit and position."""

    planned: PlannedFile
    members: tuple[tuple[FittedGroup, int], ...]


def prefix(key: str) -> str:
    """How the tensors of unit `key` begin: "up", or "up.layers-004-007"."""
    return key.replace("/", ".")


def adapter_name(expert: ExpertMatrix) -> str:
    """The tensor that holds the adapter of `expert`."""
    kind = "shared_experts" if expert.shared else "experts"
    return f"layers.{expert.layer}.{kind}.{expert.expert}.{expert.family}.adapter"


def plan_adapters(source: TrainedRun, out: Path, dtype: str, shard_bytes: int) -> list[AdapterFile]:
    """Deal the adapters, unit by unit and by position, to shards of at most `shard_bytes`."""
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


def describe(source: TrainedRun, dtype: str, errors: dict[str, float]) -> dict[str, Any]:
    """The content of globe_config.json."""
    index = source.index
    return {
        "format": 1,
        "kind": "factors",
        "dtype": dtype,
        "model": index.model,
        "revision": index.revision,
        "model_type": index.model_type,
        "fingerprint": index.fingerprint().to_json(),
        "relative_frobenius_error": errors,
        "reconstruction": "scale * A @ phi(gain * sum_j alpha_j B_j) + offset, "
        "phi(x) = (1 - lambda) x + lambda act(x)",
        "units": {fitted.group.key: _group(fitted) for fitted in source.groups},
    }


def _group(fitted: FittedGroup) -> dict[str, Any]:
    sizes, phi = fitted.group.sizes, fitted.activation
    return {
        "family": fitted.group.family,
        "tensors": prefix(fitted.group.key),
        "layers": sorted({expert.layer for expert in fitted.group.experts}),
        "experts": sizes.experts,
        "p": sizes.p,
        "d": sizes.d,
        "rank": sizes.rank,
        "bases": sizes.bases,
        "parameter_ratio": sizes.parameter_ratio(len(fitted.codes.values)),
        "activation": phi.name,
        "lambda": phi.lam,
        "gain": phi.gamma,
        "scale": 1.0,
        "offset": fitted.mean,
        "normalisation": {"mean": fitted.mean, "scale": fitted.scale, "folded": True},
        "relative_frobenius_error": fitted.state.relative_frobenius_error,
    }
