"""What an export as a model writes: tensors that are kept, and those in the experts' place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from globe_stream.checkpoint.experts import ExpertMatrix, Key
from globe_stream.checkpoint.strided import StridedMatrix, contiguous
from globe_stream.errors import InputError, option
from globe_stream.export.bank_place import BankPlace
from globe_stream.export.shard_plan import Rewrite, Shard, Tensor, plan_rewrite
from globe_stream.factorization import model_files as layout
from globe_stream.factorization.factor_files import (
    Bits,
)
from globe_stream.factorization.packed_factors import Spec, adapter_specs, bank_specs
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.dtypes import ITEM_BYTES
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import PlannedFile, plan_file

_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class LayerFile:
    """One file of whole layers with factors."""

    planned: PlannedFile
    layers: tuple[int, ...]

    def entries(self, layer: int) -> dict[str, TensorEntry]:
        """The tensors of a layer by their names within it."""
        prefix = layout.layer_prefix(layer)
        return {
            entry.name.removeprefix(prefix): entry
            for entry in self.planned.entries
            if entry.name.startswith(prefix)
        }


@dataclass(frozen=True)
class ModelPlan:
    """The files of a folder, in the order of their numbers, and its config.json."""

    description: layout.ModelDescription
    config: JsonObject
    banks: PlannedFile
    layers: tuple[LayerFile, ...]
    kept: tuple[Shard, ...]
    dequantised: dict[Key, StridedMatrix]

    def bank_places(self) -> dict[str, BankPlace]:
        """Where every bank lies in the file `banks`, by key."""
        entries = {entry.name: entry for entry in self.banks.entries}
        return {
            key: BankPlace.of(entries, layout.bank_tensor(key), layout.bank_tensor(key, ""))
            for key in self.description.banks
        }

    @property
    def files(self) -> list[PlannedFile]:
        """Every file of tensors."""
        layers = [file.planned for file in self.layers]
        return [self.banks, *layers, *(shard.planned for shard in self.kept)]


def plan_model(
    source: TrainedRun, out: Path, dtype: str, bits: Bits, *, chosen: bool, shard_bytes: int
) -> ModelPlan:
    """Plan the folder `out` with factors and unquantised experts stored as `dtype`.

    With `bits`, those of bank and adapters, these are quantised. `chosen` says that the user asked
    for the dtype, which config.json then names. `shard_bytes` is the size of a file beyond which
    the next layer begins another.
    """
    description = describe(source, bits)
    members = [expert for fitted in source.groups for expert in fitted.group.experts]
    rewrite = plan_rewrite(source.index, members, dtype, out, chosen)
    kept = _kept(rewrite, _replaced_tensors(source, description))
    layers = _deal(source, description, dtype, shard_bytes)
    count = 1 + len(layers) + len(kept)
    names = iter([out / f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)])
    banks = plan_file(next(names), _bank_specs(description, dtype), _METADATA)
    layer_files = tuple(
        LayerFile(plan_file(next(names), specs, _METADATA), numbers) for numbers, specs in layers
    )
    moved = [_moved(shard, tensors, next(names)) for shard, tensors in kept]
    entries = {entry.name: entry for shard in moved for entry in shard.planned.entries}
    dequantised = {
        key: _rebase(place, _old_entry(rewrite, place.tensor), entries[place.tensor])
        for key, place in rewrite.dequantised.items()
        if place.tensor in entries
    }
    config = layout.model_config(rewrite.config, description)
    return ModelPlan(description, config, banks, layer_files, tuple(moved), dequantised)


def describe(source: TrainedRun, bits: Bits) -> layout.ModelDescription:
    """The banks of a run and their members by layer, as config.json describes them."""
    banks, groups = {}, []
    for fitted in source.groups:
        sizes, key, phi = fitted.group.sizes, fitted.group.key, fitted.activation
        banks[key] = layout.BankSizes(
            sizes.p, sizes.d, sizes.rank, sizes.bases,
            phi.name, phi.lam, phi.gamma, 1.0, fitted.mean, bits,
        )  # fmt: skip
        experts = [(e.layer, e.expert, e.shared) for e in fitted.group.experts]
        groups.append((key, fitted.group.family, experts))
    return layout.ModelDescription(banks=banks, layers=layout.members_by_layer(groups))


def routed(source: TrainedRun, family: str, layer: int) -> list[ExpertMatrix]:
    """The routed experts of one family of a layer, in the order of their numbers.

    Raises InputError when the checkpoint has no such family.
    """
    if family not in source.index.experts:
        raise InputError(
            f"{source.index.model}: has no {family} matrices, so it is no whole model. "
            f"Use {option('format')} factors"
        )
    return [e for e in source.index.experts[family] if e.layer == layer and not e.shared]


# -- what replaces the experts ---------------------------------------------------------------------


def _bank_specs(description: layout.ModelDescription, dtype: str) -> list[Spec]:
    specs: list[Spec] = []
    for key, bank in description.banks.items():
        shape = (bank.bases, bank.rank, bank.d)
        if bank.bits is None:
            specs.append((layout.bank_tensor(key), dtype, shape))
        else:
            specs += bank_specs(layout.bank_tensor(key, ""), shape, bank.bits[0])
    return sorted(specs, key=lambda spec: -ITEM_BYTES[spec[1]])


def _deal(
    source: TrainedRun, description: layout.ModelDescription, dtype: str, shard_bytes: int
) -> list[tuple[tuple[int, ...], list[Spec]]]:
    """Layers to files: the numbers of the layers in each, and its tensors."""
    files: list[tuple[tuple[int, ...], list[Spec]]] = []
    filled = shard_bytes
    for layer in sorted(description.layers):
        specs = _layer_specs(source, description, layer, dtype)
        size = sum(_spec_bytes(spec) for spec in specs)
        if filled + size > shard_bytes:
            files.append(((), []))
            filled = 0
        numbers, before = files[-1]
        # Wider elements first, so that every tensor lies at a multiple of its element size.
        together = sorted([*before, *specs], key=lambda spec: -ITEM_BYTES[spec[1]])
        files[-1] = ((*numbers, layer), together)
        filled += size
    return files


def _layer_specs(
    source: TrainedRun, description: layout.ModelDescription, layer: int, dtype: str
) -> list[Spec]:
    prefix = layout.layer_prefix(layer)
    specs: list[Spec] = []
    for family in layout.FAMILIES:
        members = description.layers[layer].get(family)
        everyone = routed(source, family, layer)
        taken = 0
        if members is not None:
            bank, taken = description.banks[members.bank], len(members.experts)
            specs += _adapter_specs(prefix + family, bank, taken, dtype)
            specs.append((f"{prefix}{family}_codes", "F32", (taken, bank.bases)))
        if others := len(everyone) - taken:
            specs.append((f"{prefix}{family}_dense", dtype, (others, *everyone[0].shape)))
    down = routed(source, "down", layer)
    specs.append((prefix + layout.DOWN, dtype, (len(down), *down[0].shape)))
    return specs


def _adapter_specs(prefix: str, bank: layout.BankSizes, count: int, dtype: str) -> list[Spec]:
    if bank.bits is None:
        return [(f"{prefix}_adapters", dtype, (count, bank.p, bank.rank))]
    return adapter_specs(f"{prefix}_", bank.p, bank.rank, bank.bits[1], (count,))


def _spec_bytes(spec: Spec) -> int:
    _, dtype, shape = spec
    size = ITEM_BYTES[dtype]
    for side in shape:
        size *= side
    return size


# -- what is kept ----------------------------------------------------------------------------------


def _replaced_tensors(source: TrainedRun, description: layout.ModelDescription) -> set[str]:
    """Tensors of the source whose elements are all stored anew under `globe_layers`."""
    return {
        expert.storage.weight.tensor
        for family in (*layout.FAMILIES, "down")
        for layer in description.layers
        for expert in routed(source, family, layer)
    }


def _kept(rewrite: Rewrite, replaced: set[str]) -> list[tuple[Shard, list[Tensor]]]:
    """The shards of which anything is kept, and what is."""
    found = []
    for shard in rewrite.shards:
        tensors = [tensor for tensor in shard.tensors if tensor.source.name not in replaced]
        if tensors:
            found.append((shard, tensors))
    return found


def _moved(shard: Shard, tensors: Sequence[Tensor], path: Path) -> Shard:
    """A shard of some of the tensors of another, in the file `path`."""
    specs = [(t.entry.name, t.entry.dtype, t.entry.shape) for t in tensors]
    planned = plan_file(path, specs, _METADATA)
    new = {entry.name: entry for entry in planned.entries}
    old = {tensor.entry.name: tensor.entry for tensor in tensors}
    places = {
        key: _rebase(place, old[place.tensor], new[place.tensor])
        for key, place in shard.places.items()
        if place.tensor in new
    }
    return Shard(planned, tuple(replace(t, entry=new[t.entry.name]) for t in tensors), places)


def _rebase(place: StridedMatrix, old: TensorEntry, new: TensorEntry) -> StridedMatrix:
    return replace(place, path=new.path, start=place.start - old.start + new.start)


def _old_entry(rewrite: Rewrite, name: str) -> TensorEntry:
    return next(
        tensor.entry
        for shard in rewrite.shards
        for tensor in shard.tensors
        if tensor.entry.name == name
    )


def place_of(entry: TensorEntry, number: int) -> StridedMatrix:
    """Where matrix `number` of a stacked tensor (E, rows, columns) lies."""
    _, rows, columns = entry.shape
    return contiguous(entry, rows, columns, number)
