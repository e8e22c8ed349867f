"""An export of factors: bank, codes, adapters, one streamed pass, resumable by shard.

The scale of the normalisation is folded into the adapters (so the recorded scale is 1); the mean
is a rank-one term that an adapter cannot carry, and is recorded as the offset. In a narrow dtype
the bank is rounded first, so that the mixtures stay close, and the adapters are refitted to what
was written; the errors reported are those of the rounded factors.
Source: docs/design.md, section Export formats.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.precision import arithmetic_of
from globe_stream.engine.progress import ProgressCall, Tally
from globe_stream.export.model_card import model_card
from globe_stream.export.result import (
    ExportResult,
    choose_dtype,
    finished_result,
    relative_errors,
)
from globe_stream.export.staging import ExportManifest, ExportWork, open_work
from globe_stream.factorization import factor_files as layout
from globe_stream.factorization.bank_cache import WrittenBank
from globe_stream.factorization.factors_config import CONFIG, describe, prefix
from globe_stream.factorization.reconstruction import BankApproximation
from globe_stream.factorization.rounding import round_columns
from globe_stream.factorization.trained_run import FittedGroup, TrainedRun, open_trained_run
from globe_stream.io import files
from globe_stream.io.dtypes import TORCH_DTYPES
from globe_stream.io.records import Json
from globe_stream.io.safetensors import TensorEntry
from globe_stream.io.safetensors_writer import PlannedFile, SafetensorsWriter, plan_file
from globe_stream.memory.meter import Meter
from globe_stream.memory.planner import ExportPlan, plan_export
from globe_stream.store.bank import StoredBank


def export_factors(
    run: Path,
    out: Path,
    *,
    dtype: str | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    shard_bytes: int = layout.SHARD_BYTES,
    progress: ProgressCall | None = None,
) -> ExportResult:
    """Write the factors of the run in `run` to `out`; the same call again continues.

    Args:
        dtype: of bank and adapters: bf16, fp16 or fp32; default that of the checkpoint.
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
        }
        plan = plan_export(
            [fitted.group for fitted in source.groups], memory, rounds=stored != "F32"
        )
        meter = Meter()
        with meter.stage("export"):
            work = open_work(out, identity, layout.INDEX)
        if work is None:
            return finished_result(out, source, plan.estimate_bytes, meter.peak)
        with work, arithmetic_of(source.run), meter.stage("export"):
            resumed = len(work.records())
            adapters = layout.plan_adapters(source, out, stored, shard_bytes)
            small = [_plan_bank(source, out, stored), _plan_codes(source, out)]
            _require_space(work, [*small, *(shard.planned for shard in adapters)])
            _write_bank(work, source, small[0])
            _write_codes(work, source, small[1])
            _write_adapters(work, source, small[0].entries, adapters, plan, progress)
            errors = relative_errors(source, work.records())
            _publish(
                work,
                source,
                adapters,
                ExportManifest(identity, "factors", stored, command, errors),
            )
        return finished_result(out, source, plan.estimate_bytes, meter.peak, resumed)


def _require_space(work: ExportWork, planned: Iterable[PlannedFile]) -> None:
    sizes = {one.path.name: one.size for one in planned}
    files.require_free(work.out, work.remaining(sizes), "the export")


def _plan_bank(source: TrainedRun, out: Path, dtype: str) -> PlannedFile:
    tensors = [
        (
            f"{prefix(f.group.key)}.bank",
            dtype,
            (f.group.bases, f.group.rank, f.group.sizes.d),
        )
        for f in source.groups
    ]
    return plan_file(out / layout.BANK, tensors, {"format": "pt"})


def _write_bank(work: ExportWork, source: TrainedRun, planned: PlannedFile) -> None:
    if work.record(layout.BANK):
        return
    with work.writing(planned, {}) as file:
        for fitted, entry in zip(source.groups, planned.entries, strict=True):
            with StoredBank(fitted.bank, resident=False) as bank:
                _write_rounded(file, entry, bank, fitted.codes.moment(fitted.group.bases))


def _write_rounded(
    file: SafetensorsWriter, entry: TensorEntry, bank: StoredBank, code_moment: Tensor
) -> None:
    """A bank in the dtype of `entry`, rounded so that the mixtures of its codes stay close."""
    dtype, (m, r, d) = TORCH_DTYPES[entry.dtype], bank.shape
    for first, last in bank.row_ranges:
        values = bank.rows(first, last).view(m, -1).T
        rounded = round_columns(values, code_moment, dtype).T
        for atom, rows in enumerate(rounded):
            start = (atom * r + first) * d * dtype.itemsize
            file.write_tensor(entry.start + start, rows)


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


def _write_adapters(
    work: ExportWork,
    source: TrainedRun,
    bank_entries: Sequence[TensorEntry],
    shards: list[layout.AdapterFile],
    plan: ExportPlan,
    progress: ProgressCall | None,
) -> None:
    """Adapters refitted to the banks as they were written."""
    tally = Tally(sum(len(shard.members) for shard in shards), progress)
    with ExitStack() as stack:
        path = work.finished(layout.BANK)
        banks = {
            fitted.group.key: stack.enter_context(WrittenBank(path, entry))
            for fitted, entry in zip(source.groups, bank_entries, strict=True)
        }
        for shard in shards:
            name = shard.planned.path.name
            if work.record(name) is not None:
                tally.advance(len(shard.members), name)
                continue
            squared: dict[str, float] = {}
            with work.writing(shard.planned, squared) as file:
                for fitted in _groups_of(shard, source):
                    source.index.fetch(fitted.group.experts)
                    approximation = BankApproximation(fitted, banks[fitted.group.key])
                    error = _write_group(file, shard, approximation, plan.batch, tally)
                    squared[fitted.group.family] = squared.get(fitted.group.family, 0.0) + error


def _groups_of(shard: layout.AdapterFile, source: TrainedRun) -> list[FittedGroup]:
    present = {fitted.group.key for fitted, _ in shard.members}
    return [fitted for fitted in source.groups if fitted.group.key in present]


def _write_group(
    file: SafetensorsWriter,
    shard: layout.AdapterFile,
    approximation: BankApproximation,
    batch: int,
    tally: Tally,
) -> float:
    """Adapters of one group in one shard; returns the squared error of what was written."""
    fitted = approximation.fitted
    chosen = [
        (position, entry)
        for (owner, position), entry in zip(shard.members, shard.planned.entries, strict=True)
        if owner is fitted
    ]
    squared = 0.0
    experts = [fitted.group.experts[position] for position, _ in chosen]
    expected = fitted.expected([position for position, _ in chosen])
    with ExpertReader(experts, batch, expected=expected) as reader:
        for part in reader.batches():
            for slot, weights in zip(part.positions, part.weights, strict=True):
                position, entry = chosen[slot]
                fit = approximation.fit(position, weights)
                adapter = fit.adapters[0].mul_(fitted.scale)
                rounded = round_columns(adapter, fit.hidden_gram[0], TORCH_DTYPES[entry.dtype])
                file.write_tensor(entry.start, rounded)
                left = weights.mul_(fitted.scale).addmm_(rounded.float(), fit.hidden[0], alpha=-1)
                squared += float(left.norm().double().square())
            tally.advance(len(part.positions), fitted.group.key)
    return squared


def _publish(
    work: ExportWork, source: TrainedRun, shards: list[layout.AdapterFile], manifest: ExportManifest
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
    described = describe(source, dtype, errors).to_json()
    work.add(CONFIG, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    weight_map = {
        entry.name: shard.planned.path.name for shard in shards for entry in shard.planned.entries
    }
    total = sum(entry.nbytes for shard in shards for entry in shard.planned.entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    work.add(layout.INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    work.publish(manifest, layout.INDEX)
