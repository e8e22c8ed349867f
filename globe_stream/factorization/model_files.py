"""The tensors of an export as a model, and the description of them in its config.json.

A layer whose routed experts have factors is stored as a whole under `globe_layers.<L>`: stacked
adapters and codes by family, the matrices of experts without factors, and the stacked down
projections, in the shapes that are computed with; so loading copies nothing. Banks are stored under
`globe_banks`. Every other tensor has the name and the bytes that it has in the source.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from globe_stream.errors import InputError, option
from globe_stream.factorization.activation import Activation
from globe_stream.io.records import JsonObject, Record
from globe_stream.io.safetensors import TensorEntry

FIELD = "globe_stream"
"""Where config.json describes the factors."""

TYPE_PREFIX = "globe_stream_"
"""A folder's model type is this and the type of its source."""

CLASS_PREFIX = "Globe"
BANKS, LAYERS, DOWN = "globe_banks", "globe_layers", "down_proj"
FAMILIES = ("gate", "up")
SHIM = "modeling_globe_stream.py"
"""The module that `trust_remote_code=True` runs."""

MLX_FILE = "mlx_globe_stream.py"
"""The module that mlx-lm runs."""

_SHIM_TEXT = '''"""Loads this folder through globe-stream (pip install globe-stream)."""

from globe_stream.inference.pretrained import model_classes

GlobeConfig, GlobeForCausalLM = model_classes("{model_type}")
'''


@dataclass(frozen=True)
class BankSizes(Record):
    """One bank of m = `bases` atoms (r, d) and what W_hat = scale A phi(Z) + offset (p, d) needs.

    `activation`, `lam` and `gain` are those of phi. `bits` are those of bank and adapters where
    they are quantised; adapters are then those of L^-1 H.
    """

    p: int
    d: int
    rank: int
    bases: int
    activation: str
    lam: Annotated[float, Field(alias="lambda")]
    gain: float
    scale: float
    offset: float
    bits: tuple[int, int] | None = None

    @property
    def phi(self) -> Activation:
        """The activation with its gain."""
        return Activation(self.activation, self.lam, self.gain)

    @property
    def elements(self) -> int:
        """Elements of the bank."""
        return self.bases * self.rank * self.d


@dataclass(frozen=True)
class Members(Record):
    """The experts of one family of one layer that have factors, by row, and their bank's key."""

    bank: Annotated[str, Field(alias="unit")]
    experts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelDescription(Record):
    """Banks by key, and for every layer with factors the members of each family."""

    format: int = 1
    banks: Annotated[dict[str, BankSizes], Field(alias="units")]
    layers: dict[int, dict[str, Members]]

    def saved_bytes(self, itemsize: int) -> int:
        """Bytes of the matrices with factors less those of banks and adapters; may be < 0.

        `itemsize` is that of what is not quantised.
        """
        sizes = {key: bank.bits or (8 * itemsize, 8 * itemsize) for key, bank in self.banks.items()}
        kept = sum(sizes[key][0] * bank.elements for key, bank in self.banks.items())
        replaced = 0
        for parts in self.layers.values():
            for members in parts.values():
                bank, count = self.banks[members.bank], len(members.experts)
                kept += sizes[members.bank][1] * count * bank.p * bank.rank
                replaced += 8 * itemsize * count * bank.p * bank.d
        return (replaced - kept) // 8

    @property
    def weights(self) -> int:
        """Elements of the matrices with factors."""
        return sum(
            len(members.experts) * self.banks[members.bank].p * self.banks[members.bank].d
            for parts in self.layers.values()
            for members in parts.values()
        )


def bits_per_weight(description: ModelDescription, tensors: Iterable[TensorEntry]) -> float:
    """Stored bits of banks, codes, adapters and scales among `tensors`, over `weights`."""
    ours = (f"{BANKS}.", f"{LAYERS}.")
    stored = sum(
        entry.nbytes
        for entry in tensors
        if entry.name.startswith(ours) and not entry.name.endswith(("_dense", DOWN))
    )
    return 8 * stored / description.weights


def members_by_layer(
    groups: Sequence[tuple[str, str, Sequence[tuple[int, int, bool]]]],
) -> dict[int, dict[str, Members]]:
    """The routed experts by layer and family of groups (key, family, (layer, expert, shared)...).

    Shared experts are left out: their reconstruction stands in their own matrices. Raises
    InputError for families whose modules cannot compute with factors.
    """
    other = sorted({family for _, family, _ in groups} - set(FAMILIES))
    if other:
        raise InputError(
            f"factors of {other[0]} cannot stand in a model: only those of up and gate can. "
            f"Export with {option('format')} dense or factors, or seed without {other[0]}"
        )
    found: dict[int, dict[str, tuple[str, list[int]]]] = {}
    for key, family, experts in groups:
        for layer, expert, shared in experts:
            if not shared:
                found.setdefault(layer, {}).setdefault(family, (key, []))[1].append(expert)
    return {
        layer: {family: Members(key, tuple(rows)) for family, (key, rows) in sorted(parts.items())}
        for layer, parts in sorted(found.items())
    }


def bank_module(key: str) -> str:
    """The name of a bank as a module's attribute."""
    return re.sub(r"\W", "_", key)


def bank_tensor(key: str, part: str = "atoms") -> str:
    """The tensor that holds a bank, or a `part` of it."""
    return f"{BANKS}.{bank_module(key)}.{part}"


def layer_prefix(layer: int) -> str:
    """How the names of the tensors of a layer with factors begin."""
    return f"{LAYERS}.{layer}."


def model_config(config: JsonObject, description: ModelDescription) -> JsonObject:
    """The config.json of the folder, from that of the source without its quantisation."""
    listed = config.get("architectures")
    architectures = [CLASS_PREFIX + name for name in listed] if isinstance(listed, list) else []
    module = SHIM.removesuffix(".py")
    return {
        **config,
        "model_type": TYPE_PREFIX + str(config["model_type"]),
        "architectures": architectures,
        "auto_map": {
            "AutoConfig": f"{module}.GlobeConfig",
            "AutoModelForCausalLM": f"{module}.GlobeForCausalLM",
        },
        "model_file": MLX_FILE,
        FIELD: description.to_json(),
    }


def folder_modules(model_type: str) -> dict[str, str]:
    """The Python files of a folder by name, for a source of type `model_type`."""
    mlx = Path(__file__).with_name("templates") / MLX_FILE
    return {
        SHIM: _SHIM_TEXT.format(model_type=model_type),
        MLX_FILE: mlx.read_text(encoding="utf-8"),
    }
