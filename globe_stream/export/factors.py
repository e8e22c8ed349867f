"""An export of factors: bank, codes, adapters, one streamed pass, resumable by shard.

The scale of the normalisation is folded into the adapters (so the recorded scale is 1); the mean
is a rank-one term that an adapter cannot carry, and is recorded as the offset. In a narrow dtype
the bank is rounded first, so that the mixtures stay close, and the adapters are refitted to what
was written; the errors reported are those of the rounded factors.
Source: docs/design.md, section Export formats.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.progress import ProgressCall, Tally
from globe_stream.export.adapter_place import AdapterPlace
from globe_stream.export.bank_place import BankPlace
from globe_stream.export.carry_out import carry_out
from globe_stream.export.model_card import model_card
from globe_stream.export.result import (
    ExportResult,
    choose_dtype,
    relative_errors,
)
from globe_stream.export.staging import ExportManifest, ExportWork
from globe_stream.factorization import factor_files as layout
from globe_stream.factorization.bank_cache import Bank, BankCache, Opener
from globe_stream.factorization.factors_config import CONFIG, describe, prefix
from globe_stream.factorization.reconstruction import BankApproximation
from globe_stream.factorization.trained_run import FittedGroup, TrainedRun, open_trained_run
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.io.safetensors_writer import PlannedFile, SafetensorsWriter, plan_file
from globe_stream.memory.planner import plan_export


def export_factors(
    run: Path,
    out: Path,
    *,
    dtype: str | None = None,
    bits: tuple[int, int] | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    shard_bytes: int = layout.SHARD_BYTES,
    progress: ProgressCall | None = None,
) -> ExportResult:
    """Write the factors of the run in `run` to `out`; the same call again continues.

    Args:
        dtype: of bank and adapters: bf16, fp16 or fp32; default that of the checkpoint.
        bits: of bank and adapters, 2 to 8 each, where they are to be quantised.
        memory: peak resident bytes of the process; None means no limit.
        model: where the checkpoint is now, if it moved since the run was made.
        command: the command line, for the model card.
        shard_bytes: largest size of one file of adapters.

    Raises InputError when the run is not trained, its checkpoint changed, `out` holds something
    else, the disk is too small or the budget is; nothing loadable is left behind.
    """
    with open_trained_run(run, model=model) as source:
        stored = choose_dtype(dtype, source.groups[0].group.experts[0].dtype)
        identity: Json = {
            "kind": "factors",
            "state": source.identity(),
            "dtype": stored,
            "shard_bytes": shard_bytes,
            **({} if bits is None else {"bits": list(bits)}),
        }
        groups = [fitted.group for fitted in source.groups]
        plan = plan_export(groups, memory, rounds=stored != "F32", quantizes=bits is not None)

        def write(work: ExportWork) -> None:
            adapters = layout.plan_adapters(source, out, stored, bits, shard_bytes)
            small = [_plan_bank(source, out, stored, bits), _plan_codes(source, out)]
            _require_space(work, [*small, *(shard.planned for shard in adapters)])
            _write_bank(work, source, small[0])
            _write_codes(work, source, small[1])
            with BankCache(plan.resident, _opener(work, small[0])) as banks:
                tally = Tally(sum(len(shard.members) for shard in adapters), progress)
                writer = _AdapterWriter(source, banks, bits, plan.batch, tally)
                for shard in adapters:
                    writer.write(work, shard)
            errors = relative_errors(source, work.records())
            manifest = ExportManifest(identity, "factors", stored, command, errors)
            _publish(work, source, adapters, bits, manifest)

        return carry_out(source, out, identity, layout.INDEX, plan, write)


def _require_space(work: ExportWork, planned: Iterable[PlannedFile]) -> None:
    sizes = {one.path.name: one.size for one in planned}
    files.require_free(work.out, work.remaining(sizes), "the export")


def _plan_bank(source: TrainedRun, out: Path, dtype: str, bits: layout.Bits) -> PlannedFile:
    tensors = []
    for fitted in source.groups:
        shape = (fitted.group.bases, fitted.group.rank, fitted.group.sizes.d)
        tensors += layout.bank_tensors(f"{prefix(fitted.group.key)}.bank", shape, dtype, bits)
    return plan_file(out / layout.BANK, layout.widest_first(tensors), {"format": "pt"})


def _place(planned: PlannedFile, fitted: FittedGroup) -> BankPlace:
    name = f"{prefix(fitted.group.key)}.bank"
    return BankPlace.of({entry.name: entry for entry in planned.entries}, name, f"{name}.")


def _write_bank(work: ExportWork, source: TrainedRun, planned: PlannedFile) -> None:
    if work.record(layout.BANK):
        return
    with work.writing(planned, {}) as file:
        for fitted in source.groups:
            _place(planned, fitted).write(file, fitted)


def _opener(work: ExportWork, planned: PlannedFile) -> Opener:
    """Banks as they were written."""
    path = work.finished(layout.BANK)

    def open_bank(fitted: FittedGroup, resident: bool) -> Bank:
        return _place(planned, fitted).open(path, fitted.group.sizes.d, resident=resident)

    return open_bank


def _plan_codes(source: TrainedRun, out: Path) -> PlannedFile:
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for fitted in source.groups:
        name, count = prefix(fitted.group.key), len(fitted.group.experts)
        kept = len(fitted.codes.values)
        tensors += [
            (f"{name}.offsets", "I64", (count + 1,)),
            (f"{name}.indices", "I32", (kept,)),
            (f"{name}.values", "F32", (kept,)),
            (f"{name}.experts", "I32", (count, 3)),
        ]
    return plan_file(out / layout.CODES, tensors, {"format": "pt"})


def _write_codes(work: ExportWork, source: TrainedRun, planned: PlannedFile) -> None:
    if work.record(layout.CODES):
        return
    with work.writing(planned, {}) as file:
        for number, fitted in enumerate(source.groups):
            codes = fitted.codes
            members = torch.tensor(
                [
                    [expert.layer, expert.expert, int(expert.shared)]
                    for expert in fitted.group.experts
                ],
                dtype=torch.int32,
            )
            values = (codes.offsets, codes.indices, codes.values, members)
            for entry, value in zip(planned.entries[4 * number :], values, strict=False):
                file.write_tensor(entry.start, value.contiguous())


@dataclass(frozen=True)
class _AdapterWriter:
    """Writes adapters refitted to the banks as they were written."""

    source: TrainedRun
    banks: BankCache
    bits: layout.Bits
    batch: int
    tally: Tally

    def write(self, work: ExportWork, shard: layout.AdapterFile) -> None:
        """Write one shard, unless it is finished already."""
        name = shard.planned.path.name
        if work.record(name) is not None:
            self.tally.advance(len(shard.members), name)
            return
        squared: dict[str, float] = {}
        with work.writing(shard.planned, squared) as file:
            for fitted in self.source.groups:
                positions = [position for owner, position in shard.members if owner is fitted]
                if not positions:
                    continue
                self.source.index.fetch(fitted.group.experts)
                error = self._write_group(file, shard, fitted, positions)
                squared[fitted.group.family] = squared.get(fitted.group.family, 0.0) + error

    def _write_group(
        self,
        file: SafetensorsWriter,
        shard: layout.AdapterFile,
        fitted: FittedGroup,
        positions: list[int],
    ) -> float:
        """Adapters of one group in one shard; returns the squared error of what was written."""
        entries = {entry.name: entry for entry in shard.planned.entries}
        approximation = BankApproximation(fitted, self.banks.bank(fitted))
        experts = [fitted.group.experts[position] for position in positions]
        bits, squared = self.bits[1] if self.bits else None, 0.0
        with ExpertReader(experts, self.batch, expected=fitted.expected(positions)) as reader:
            for part in reader.batches():
                for slot, weights in zip(part.positions, part.weights, strict=True):
                    fit = approximation.fit(positions[slot], weights)
                    name = layout.adapter_name(experts[slot])
                    place = AdapterPlace.of(entries, name, f"{name}.", bits)
                    squared += place.write(file, 0, fit, weights, fitted.scale)
                self.tally.advance(len(part.positions), fitted.group.key)
        return squared


def _publish(
    work: ExportWork,
    source: TrainedRun,
    shards: list[layout.AdapterFile],
    bits: layout.Bits,
    manifest: ExportManifest,
) -> None:
    dtype, errors = manifest.dtype, manifest.relative_frobenius_error
    shard_names = [shard.planned.path.name for shard in shards]
    records = work.records()
    size = sum(records[name].bytes for name in (layout.BANK, layout.CODES, *shard_names))
    card = model_card(
        source,
        kind="factors",
        dtype=dtype,
        size=size,
        errors=errors,
        command=manifest.command,
        hub_id=source.index.revision is not None,
    )
    work.add("README.md", card.encode())
    described = describe(source, dtype, errors, bits).to_json()
    work.add(CONFIG, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    weight_map = {
        entry.name: shard.planned.path.name for shard in shards for entry in shard.planned.entries
    }
    total = sum(entry.nbytes for shard in shards for entry in shard.planned.entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    work.add(layout.INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    work.publish(manifest, layout.INDEX)
