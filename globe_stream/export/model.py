"""An export as a model: a folder of its own kind that transformers loads in compressed form.

Memory does not depend on the model's size: one expert, one piece of a tensor, the banks if the
budget allows, and codes as supports.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Unpack

import torch

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.json_files import INDEX_NAME
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.progress import Tally
from globe_stream.export import auxiliary_files as companions
from globe_stream.export.adapter_place import AdapterPlace
from globe_stream.export.bank_place import BankFile
from globe_stream.export.convert import write_matrix
from globe_stream.export.model_plan import LayerFile, ModelPlan, place_of, plan_model, routed
from globe_stream.export.order import Export, ExportOptions, ExportOrder
from globe_stream.export.result import ExportResult
from globe_stream.export.shard_rewriter import Rebuilt, ShardRewriter
from globe_stream.export.staging import ExportWork
from globe_stream.export.written_errors import FileErrors, Written
from globe_stream.factorization import model_files as layout
from globe_stream.factorization.bank_cache import BankCache
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.reconstruction import GroupFits
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import SafetensorsWriter
from globe_stream.memory.planner import ExportPlan

SHARD_BYTES = 2 << 30


def export_model(
    run: Path,
    out: Path,
    *,
    bits: tuple[int, int] | None = None,
    shard_bytes: int = SHARD_BYTES,
    **options: Unpack[ExportOptions],
) -> ExportResult:
    """Write the model of the run in `run` to `out` in compressed form; the same call continues.

    `transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)` loads it.
    `bits` and `options` are those of `export_factors`, and so are the errors that are raised.
    `shard_bytes` is the size of a file beyond which the next layer begins another.
    """
    order = ExportOrder(run, out, **options)
    with order.source() as source:
        return ModelExport(source, order, bits, shard_bytes).carry_out()


@dataclass(frozen=True)
class ModelExport(Export):
    """A folder in compressed form that transformers loads."""

    bits: tuple[int, int] | None
    shard_bytes: int

    kind = "model"
    last = INDEX_NAME

    @property
    def settings(self) -> Json:
        """Bits, size of the files, and whether config.json names the dtype."""
        return {
            "dtype_in_config": self.order.dtype is not None,
            "bits": None if self.bits is None else list(self.bits),
            "shard_bytes": self.shard_bytes,
        }

    @cached_property
    def plan(self) -> ExportPlan:
        """How it fits the memory, factors rounded to what is stored."""
        return self.factors_plan(quantizes=self.bits is not None)

    def write(self, work: ExportWork) -> None:
        """The banks, then layers with factors, then what is kept."""
        planned = plan_model(
            self.source,
            self.order.out,
            self.stored,
            self.bits,
            chosen=self.order.dtype is not None,
            shard_bytes=self.shard_bytes,
        )
        _require_space(work, self.source, planned)
        bank_file = BankFile(work, planned.banks, planned.bank_places())
        bank_file.write(self.source.groups)
        with (
            self.metrics(work) as metrics,
            BankCache(self.plan.resident, bank_file.open) as banks,
        ):
            self._write_layers(work, planned, GroupFits(banks, metrics))
        self._publish(work, planned)

    def _write_layers(self, work: ExportWork, planned: ModelPlan, fits: GroupFits) -> None:
        source, batch = self.source, self.plan.batch
        tally = Tally(sum(len(one.group.experts) for one in source.groups), self.order.progress)
        writer = LayerWriter(source, fits, self.bits, batch, tally)
        for file in planned.layers:
            writer.write(work, file)
        rebuilt = Rebuilt(source, fits)
        rewriter = ShardRewriter(source, planned.dequantised, rebuilt, batch, tally)
        for shard in planned.kept:
            rewriter.write(work, shard)

    def _publish(self, work: ExportWork, planned: ModelPlan) -> None:
        index, manifest = self.source.index, self.manifest(work)
        companions.copy_companions(work, index)
        work.add("config.json", (json.dumps(planned.config, indent=2) + "\n").encode())
        for name, text in layout.folder_modules(str(index.config["model_type"])).items():
            work.add(name, text.encode())
        work.add("README.md", self.card(manifest, sum(one.size for one in planned.files)))
        work.add(INDEX_NAME, _weight_index(planned).encode())
        work.publish(manifest, self.last)


def _require_space(work: ExportWork, source: TrainedRun, planned: ModelPlan) -> None:
    companions.fetch_companions(source.index)
    sizes = {work.name_of(one): one.size for one in planned.files}
    small = companions.total_bytes(source.index) + (1 << 20)
    files.require_free(work.out, work.remaining(sizes) + small, "the export")


@dataclass(frozen=True)
class LayerWriter:
    """Writes files of layers with factors."""

    source: TrainedRun
    fits: GroupFits
    bits: tuple[int, int] | None
    batch: int
    tally: Tally

    def write(self, work: ExportWork, file: LayerFile) -> None:
        """Write one file, unless it is finished already."""
        name = work.name_of(file.planned)
        if work.record(name) is not None:
            self.tally.advance(sum(len(part) for _, _, part in self._parts(file)), name)
            return
        errors = FileErrors()
        with work.writing(file.planned, errors) as out:
            for layer in file.layers:
                self._write_unfactored(out, file, layer)
            for fitted, layer, positions in self._parts(file):
                written = self._write_factors(out, file, fitted, layer, positions)
                errors.add(fitted.group.family, written)

    def _parts(self, file: LayerFile) -> Iterator[tuple[FittedGroup, int, list[int]]]:
        """Group, layer and positions in the group of every family of every layer of a file."""
        for fitted in self.source.groups:
            for layer in file.layers:
                positions = [
                    position
                    for position, expert in enumerate(fitted.group.experts)
                    if expert.layer == layer and not expert.shared
                ]
                if positions:
                    yield fitted, layer, positions

    def _write_factors(
        self,
        out: SafetensorsWriter,
        file: LayerFile,
        fitted: FittedGroup,
        layer: int,
        positions: list[int],
    ) -> Written:
        """Codes and adapters of a family of a layer; their squared errors on the original scale."""
        family = fitted.group.family
        entries = file.entries(layer)
        out.write_tensor(entries[f"{family}_codes"].start, _dense_codes(fitted, positions))
        chosen = [fitted.group.experts[position] for position in positions]
        self.source.index.fetch(chosen)
        approximation = self.fits.of(fitted)
        bits = self.bits[1] if self.bits else None
        place = AdapterPlace.of(entries, f"{family}_adapters", f"{family}_", bits)
        expected, written = fitted.expected(positions), Written()
        with ExpertReader(chosen, self.batch, expected=expected) as reader:
            for part in reader.batches():
                for slot, weights in zip(part.positions, part.weights, strict=True):
                    fit = approximation.fit(positions[slot], weights)
                    written += place.write(out, slot, fit, weights, fitted.normalization)
                self.tally.advance(len(part.positions), fitted.group.key)
        return written

    def _write_unfactored(self, out: SafetensorsWriter, file: LayerFile, layer: int) -> None:
        """The down projections of a layer, and its matrices without factors."""
        taken = {
            (fitted.group.family, expert.expert)
            for fitted in self.source.groups
            for expert in fitted.group.experts
            if expert.layer == layer and not expert.shared
        }
        entries = file.entries(layer)
        for family in layout.FAMILIES:
            if entry := entries.get(f"{family}_dense"):
                everyone = routed(self.source, family, layer)
                left = [e for e in everyone if (family, e.expert) not in taken]
                self._copy(out, left, entry)
        self._copy(out, routed(self.source, "down", layer), entries[layout.DOWN])

    def _copy(
        self, out: SafetensorsWriter, experts: Sequence[ExpertMatrix], entry: TensorEntry
    ) -> None:
        """Experts, dequantised or cast where they must be, into a stacked tensor."""
        self.source.index.fetch(experts)
        with ExpertReader(experts, self.batch) as reader:
            for part in reader.batches():
                for slot, weights in zip(part.positions, part.weights, strict=True):
                    write_matrix(out, place_of(entry, slot), weights)


def _dense_codes(fitted: FittedGroup, positions: list[int]) -> torch.Tensor:
    """Codes (len(positions), m) float32 of some experts of a group."""
    dense = torch.zeros(len(positions), fitted.group.bases)
    for row, position in enumerate(positions):
        indices, values = fitted.codes.of(position)
        dense[row, indices.long()] = values
    return dense


def _weight_index(planned: ModelPlan) -> str:
    entries = [entry for one in planned.files for entry in one.entries]
    content = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": {entry.name: entry.path.name for entry in entries},
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
