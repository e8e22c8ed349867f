"""An export of factors: bank, codes, adapters, one streamed pass, resumable by shard.

The scale of the normalisation is folded into the adapters (so the recorded scale is 1); the mean
is a rank-one term that an adapter cannot carry, and is recorded as the offset. In a narrow dtype
the bank is rounded first, so that the mixtures stay close, and the adapters are refitted to what
was written; the errors reported are those of the rounded factors.
Source: docs/design.md, section Export formats.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Unpack

import torch

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.progress import Tally
from globe_stream.export.adapter_place import AdapterPlace
from globe_stream.export.bank_place import BankFile, BankPlace
from globe_stream.export.order import Export, ExportOptions, ExportOrder
from globe_stream.export.result import ExportResult
from globe_stream.export.staging import ExportWork
from globe_stream.export.written_errors import FileErrors, Written
from globe_stream.factorization import factor_files as layout
from globe_stream.factorization.bank_cache import BankCache
from globe_stream.factorization.factors_config import CONFIG, describe, prefix
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.reconstruction import GroupFits
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.io.safetensors_writer import PlannedFile, SafetensorsWriter, plan_file
from globe_stream.memory.planner import ExportPlan


def export_factors(
    run: Path,
    out: Path,
    *,
    bits: tuple[int, int] | None = None,
    shard_bytes: int = layout.SHARD_BYTES,
    **options: Unpack[ExportOptions],
) -> ExportResult:
    """Write the factors of the run in `run` to `out`; the same call again continues.

    Args:
        bits: of bank and adapters, 2 to 8 each, where they are to be quantised.
        shard_bytes: largest size of one file of adapters.
        options: see `ExportOrder`.

    Raises InputError when the run is not trained, its checkpoint changed, `out` holds something
    else, the disk is too small or the budget is; nothing loadable is left behind.
    """
    order = ExportOrder(run, out, **options)
    with order.source() as source:
        return FactorsExport(source, order, bits, shard_bytes).carry_out()


@dataclass(frozen=True)
class FactorsExport(Export):
    """Bank, codes and adapters of a run."""

    bits: layout.Bits
    shard_bytes: int

    kind = "factors"
    last = layout.INDEX

    @property
    def settings(self) -> Json:
        """Size of the files, and bits if there are any."""
        bits: Json = {} if self.bits is None else {"bits": list(self.bits)}
        return {"shard_bytes": self.shard_bytes, **bits}

    @cached_property
    def plan(self) -> ExportPlan:
        """How it fits the memory, factors rounded to what is stored."""
        return self.factors_plan(quantizes=self.bits is not None)

    def write(self, work: ExportWork) -> None:
        """Bank and codes, then the adapters, then what describes them."""
        source, out, stored, bits = self.source, self.order.out, self.stored, self.bits
        adapters = layout.plan_adapters(source, out, stored, bits, self.shard_bytes)
        small = [_plan_bank(source, out, stored, bits), _plan_codes(source, out)]
        _require_space(work, [*small, *(shard.planned for shard in adapters)])
        bank_file = BankFile(work, small[0], _places(source, small[0]))
        bank_file.write(source.groups)
        _write_codes(work, source, small[1])
        with (
            self.metrics(work) as metrics,
            BankCache(self.plan.resident, bank_file.open) as banks,
        ):
            tally = Tally(sum(len(shard.members) for shard in adapters), self.order.progress)
            fits = GroupFits(banks, metrics)
            writer = AdapterWriter(source, fits, bits, self.plan.batch, tally)
            for shard in adapters:
                writer.write(work, shard)
        self._publish(work, adapters)

    def _publish(self, work: ExportWork, shards: Sequence[layout.AdapterFile]) -> None:
        manifest, records = self.manifest(work), work.records()
        shard_names = [shard.planned.path.name for shard in shards]
        size = sum(records[name].bytes for name in (layout.BANK, layout.CODES, *shard_names))
        work.add("README.md", self.card(manifest, size))
        errors = manifest.relative_frobenius_error
        described = describe(
            self.source, self.stored, errors, self.bits, manifest.calibration
        ).to_json()
        work.add(CONFIG, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
        work.add(layout.INDEX, _index(shards).encode())
        work.publish(manifest, self.last)


def _index(shards: Sequence[layout.AdapterFile]) -> str:
    weight_map = {
        entry.name: shard.planned.path.name for shard in shards for entry in shard.planned.entries
    }
    total = sum(entry.nbytes for shard in shards for entry in shard.planned.entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _require_space(work: ExportWork, planned: Iterable[PlannedFile]) -> None:
    sizes = {one.path.name: one.size for one in planned}
    files.require_free(work.out, work.remaining(sizes), "the export")


def _plan_bank(source: TrainedRun, out: Path, dtype: str, bits: layout.Bits) -> PlannedFile:
    tensors = []
    for fitted in source.groups:
        shape = (fitted.group.bases, fitted.group.rank, fitted.group.sizes.d)
        tensors += layout.bank_tensors(f"{prefix(fitted.group.key)}.bank", shape, dtype, bits)
    return plan_file(out / layout.BANK, layout.widest_first(tensors), {"format": "pt"})


def _places(source: TrainedRun, planned: PlannedFile) -> dict[str, BankPlace]:
    """Where the bank of every group lies in the file `planned`."""
    entries = {entry.name: entry for entry in planned.entries}
    names = {fitted.group.key: f"{prefix(fitted.group.key)}.bank" for fitted in source.groups}
    return {key: BankPlace.of(entries, name, f"{name}.") for key, name in names.items()}


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
    with work.writing(planned) as file:
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
class AdapterWriter:
    """Writes adapters refitted to the banks as they were written."""

    source: TrainedRun
    fits: GroupFits
    bits: layout.Bits
    batch: int
    tally: Tally

    def write(self, work: ExportWork, shard: layout.AdapterFile) -> None:
        """Write one shard, unless it is finished already."""
        name = shard.planned.path.name
        if work.record(name) is not None:
            self.tally.advance(len(shard.members), name)
            return
        errors = FileErrors()
        with work.writing(shard.planned, errors) as file:
            for fitted in self.source.groups:
                positions = [position for owner, position in shard.members if owner is fitted]
                if not positions:
                    continue
                self.source.index.fetch(fitted.group.experts)
                written = self._write_group(file, shard, fitted, positions)
                errors.add(fitted.group.family, written)

    def _write_group(
        self,
        file: SafetensorsWriter,
        shard: layout.AdapterFile,
        fitted: FittedGroup,
        positions: list[int],
    ) -> Written:
        """Adapters of one group in one shard; returns the squared errors of what was written."""
        entries = {entry.name: entry for entry in shard.planned.entries}
        approximation = self.fits.of(fitted)
        experts = [fitted.group.experts[position] for position in positions]
        bits, written = self.bits[1] if self.bits else None, Written()
        with ExpertReader(experts, self.batch, expected=fitted.expected(positions)) as reader:
            for part in reader.batches():
                for slot, weights in zip(part.positions, part.weights, strict=True):
                    fit = approximation.fit(positions[slot], weights)
                    name = layout.adapter_name(experts[slot])
                    place = AdapterPlace.of(entries, name, f"{name}.", bits)
                    written += place.write(file, 0, fit, weights, fitted.normalization)
                self.tally.advance(len(part.positions), fitted.group.key)
        return written
