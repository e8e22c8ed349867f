"""An export as a model: a folder of its own kind that transformers loads in compressed form.

Memory does not depend on the model's size: one expert, one piece of a tensor, the banks if the
budget allows, and codes as supports.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import INDEX_NAME
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.progress import ProgressCall, Tally
from globe_stream.export import auxiliary_files as companions
from globe_stream.export.adapter_place import AdapterPlace
from globe_stream.export.carry_out import carry_out
from globe_stream.export.convert import write_matrix
from globe_stream.export.model_card import model_card
from globe_stream.export.model_plan import LayerFile, ModelPlan, place_of, plan_model, routed
from globe_stream.export.result import (
    ExportResult,
    choose_dtype,
    relative_errors,
)
from globe_stream.export.shard_rewriter import ShardRewriter
from globe_stream.export.staging import ExportManifest, ExportWork
from globe_stream.factorization import model_files as layout
from globe_stream.factorization.bank_cache import Bank, BankCache, Opener
from globe_stream.factorization.reconstruction import BankApproximation
from globe_stream.factorization.trained_run import FittedGroup, TrainedRun, open_trained_run
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import SafetensorsWriter
from globe_stream.memory.planner import ExportPlan, plan_export

SHARD_BYTES = 2 << 30


def export_model(
    run: Path,
    out: Path,
    *,
    dtype: str | None = None,
    bits: tuple[int, int] | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    shard_bytes: int = SHARD_BYTES,
    progress: ProgressCall | None = None,
) -> ExportResult:
    """Write the model of the run in `run` to `out` in compressed form; the same call continues.

    `transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)` loads it.

    Args:
        dtype: of bank and adapters, and of experts stored anew: bf16, fp16 or fp32; default that
            of the checkpoint, or bf16 for a quantised one.
        bits: of bank and adapters, 2 to 8 each, where they are to be quantised.
        memory: peak resident bytes of the process; None means no limit.
        model: where the checkpoint is now, if it moved since the run was made.
        command: the command line, for the model card.
        shard_bytes: size of a file beyond which the next layer begins another.

    Raises InputError when the run is not trained, its checkpoint changed, `out` holds something
    else, the disk is too small or the budget is; nothing loadable is left behind.
    """
    with open_trained_run(run, model=model) as source:
        stored = choose_dtype(dtype, source.groups[0].group.experts[0].dtype)
        identity: Json = {
            "kind": "model",
            "state": source.identity(),
            "dtype": stored,
            "dtype_in_config": dtype is not None,
            "bits": None if bits is None else list(bits),
            "shard_bytes": shard_bytes,
        }
        groups = [fitted.group for fitted in source.groups]
        plan = plan_export(groups, memory, rounds=stored != "F32", quantizes=bits is not None)

        def write(work: ExportWork) -> None:
            chosen = dtype is not None
            planned = plan_model(source, out, stored, bits, chosen=chosen, shard_bytes=shard_bytes)
            _require_space(work, source, planned)
            _write(work, source, planned, bits, plan, progress)
            errors = relative_errors(source, work.records())
            manifest = ExportManifest(identity, "model", stored, command, errors)
            _publish(work, source, planned, manifest)

        return carry_out(source, out, identity, INDEX_NAME, plan, write)


def _require_space(work: ExportWork, source: TrainedRun, planned: ModelPlan) -> None:
    companions.fetch_companions(source.index)
    sizes = {work.name_of(one): one.size for one in planned.files}
    small = companions.total_bytes(source.index) + (1 << 20)
    files.require_free(work.out, work.remaining(sizes) + small, "the export")


def _write(
    work: ExportWork,
    source: TrainedRun,
    planned: ModelPlan,
    bits: tuple[int, int] | None,
    plan: ExportPlan,
    progress: ProgressCall | None,
) -> None:
    tally = Tally(sum(len(fitted.group.experts) for fitted in source.groups), progress)
    _write_banks(work, source, planned)
    with BankCache(plan.resident, _opener(work, planned)) as banks:
        writer = _LayerWriter(source, banks, bits, plan.batch, tally)
        for file in planned.layers:
            writer.write(work, file)
        rewriter = ShardRewriter(
            source,
            planned.dequantised,
            lambda number: BankApproximation(
                source.groups[number], banks.bank(source.groups[number])
            ),
            plan.batch,
            tally,
        )
        for shard in planned.kept:
            rewriter.write(work, shard)


def _write_banks(work: ExportWork, source: TrainedRun, planned: ModelPlan) -> None:
    """Write the file of all banks, group by group."""
    if work.record(work.name_of(planned.banks)):
        return
    with work.writing(planned.banks, {}) as file:
        for fitted in source.groups:
            planned.bank_place(fitted.group.key).write(file, fitted)


def _opener(work: ExportWork, planned: ModelPlan) -> Opener:
    """Banks as they were written."""
    path = work.finished(work.name_of(planned.banks))

    def open_bank(fitted: FittedGroup, resident: bool) -> Bank:
        place = planned.bank_place(fitted.group.key)
        return place.open(path, fitted.group.sizes.d, resident=resident)

    return open_bank


@dataclass(frozen=True)
class _LayerWriter:
    """Writes files of layers with factors."""

    source: TrainedRun
    banks: BankCache
    bits: tuple[int, int] | None
    batch: int
    tally: Tally

    def write(self, work: ExportWork, file: LayerFile) -> None:
        """Write one file, unless it is finished already."""
        name = work.name_of(file.planned)
        if work.record(name) is not None:
            self.tally.advance(sum(len(part) for _, _, part in self._parts(file)), name)
            return
        squared: dict[str, float] = {}
        with work.writing(file.planned, squared) as out:
            for layer in file.layers:
                self._write_unfactored(out, file, layer)
            for fitted, layer, positions in self._parts(file):
                family = fitted.group.family
                error = self._write_factors(out, file, fitted, layer, positions)
                squared[family] = squared.get(family, 0.0) + error

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
    ) -> float:
        """Codes and adapters of a family of a layer; their squared error on the original scale."""
        family = fitted.group.family
        entries = file.entries(layer)
        out.write_tensor(entries[f"{family}_codes"].start, _dense_codes(fitted, positions))
        chosen = [fitted.group.experts[position] for position in positions]
        self.source.index.fetch(chosen)
        approximation = BankApproximation(fitted, self.banks.bank(fitted))
        bits = self.bits[1] if self.bits else None
        place = AdapterPlace.of(entries, f"{family}_adapters", f"{family}_", bits)
        expected, squared = fitted.expected(positions), 0.0
        with ExpertReader(chosen, self.batch, expected=expected) as reader:
            for part in reader.batches():
                for slot, weights in zip(part.positions, part.weights, strict=True):
                    fit = approximation.fit(positions[slot], weights)
                    squared += place.write(out, slot, fit, weights, fitted.scale)
                self.tally.advance(len(part.positions), fitted.group.key)
        return squared

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


def _publish(
    work: ExportWork, source: TrainedRun, planned: ModelPlan, manifest: ExportManifest
) -> None:
    index = source.index
    card = model_card(
        source,
        kind="model",
        dtype=manifest.dtype,
        size=sum(one.size for one in planned.files),
        errors=manifest.relative_frobenius_error,
        command=manifest.command,
        hub_id=index.revision is not None,
    )
    companions.copy_companions(work, index)
    work.add("config.json", (json.dumps(planned.config, indent=2) + "\n").encode())
    for name, text in layout.folder_modules(str(index.config["model_type"])).items():
        work.add(name, text.encode())
    work.add("README.md", card.encode())
    work.add(INDEX_NAME, _weight_index(planned).encode())
    work.publish(manifest, INDEX_NAME)


def _weight_index(planned: ModelPlan) -> str:
    entries = [entry for one in planned.files for entry in one.entries]
    content = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": {entry.name: entry.path.name for entry in entries},
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
