"""`export --format dense`: the source checkpoint with reconstructed experts, shard by shard.

Memory does not depend on the model's size: one expert, one piece of a tensor and, if the budget
allows, the banks. Source: contract.md, "export --format dense"; field notes 2, 6 and 9.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from globe_stream.checkpoint.experts import Expert
from globe_stream.checkpoint.index import INDEX_NAME, SINGLE_NAME, ExpertIndex
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.export import companions
from globe_stream.export.card import model_card
from globe_stream.export.fill import fill_tensor
from globe_stream.export.outfile import OutFile
from globe_stream.export.plan import ExportPlan, plan_export, plan_svd
from globe_stream.export.refit import Approximation, BankApproximation
from globe_stream.export.result import (
    ExportResult,
    ProgressCall,
    choose_dtype,
    finished_result,
    relative_errors,
)
from globe_stream.export.rewrite import Rewrite, Shard, plan_rewrite
from globe_stream.export.shelf import BankShelf
from globe_stream.export.source import Source, key_of, open_source
from globe_stream.export.truncated import SvdApproximation
from globe_stream.export.work import ExportWork, open_work
from globe_stream.memory.meter import Meter
from globe_stream.store import files

Provider = Callable[[int], Approximation]
"""The approximation of the unit with this number."""


def export_dense(
    run: Path,
    out: Path,
    *,
    dtype: str | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    progress: ProgressCall | None = None,
) -> ExportResult:
    """Write the checkpoint of the run in `run` to `out` with its experts reconstructed.

    Up and gate matrices of the run's units are replaced; all else is copied byte for byte. Of a
    quantised checkpoint every tensor is written unquantised, and the scales and the quantisation
    settings are left out. The same call again continues. Dense export saves no size.

    Args:
        dtype: of the tensors that hold replaced experts: bf16, fp16 or fp32; default that of the
            checkpoint, or bf16 for a quantised one.
        memory: peak resident bytes of the process; None means no limit.
        model: where the checkpoint is now, if it moved since the run was made.
        command: the command line, for the model card.

    Raises InputError when the run is not trained, its checkpoint changed, `out` holds something
    else, the disk is too small or the budget is; nothing loadable is left behind.
    """
    with open_source(run, model=model) as source:
        plan = plan_export([fitted.unit for fitted in source.units], memory)
        return _export(source, out, "dense", {}, dtype, plan, _banks(source, plan), command,
                       progress)


def export_svd(
    run: Path,
    out: Path,
    *,
    dtype: str | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    progress: ProgressCall | None = None,
) -> ExportResult:
    """As `export_dense`, but with every expert's truncated SVD of as many parameters.

    The rank of a unit's experts is `(p r + m r d / N) / (p + d)`, rounded. The run need not be
    trained: only its sizes are used. Source: method.md section 1.
    """
    with open_source(run, model=model, trained=False) as source:
        ranks = [round(fitted.unit.sizes.svd_rank) for fitted in source.units]
        plans = [plan_svd(fitted.unit.experts, memory) for fitted in source.units]
        plan = max(plans, key=lambda one: one.price)

        def provide(number: int) -> Approximation:
            return SvdApproximation(source.units[number].unit.experts, ranks[number])

        return _export(source, out, "svd", {"ranks": ranks}, dtype, plan, nullcontext(provide),
                       command, progress)


@contextmanager
def _banks(source: Source, plan: ExportPlan) -> Iterator[Provider]:
    with BankShelf(plan.resident) as shelf:
        yield lambda number: BankApproximation(
            source.units[number], shelf.bank(source.units[number])
        )


def _export(
    source: Source, out: Path, kind: str, extra: dict[str, Any], dtype: str | None,
    plan: ExportPlan, provider: AbstractContextManager[Provider], command: str,
    progress: ProgressCall | None,
) -> ExportResult:
    experts = [expert for fitted in source.units for expert in fitted.unit.experts]
    stored = choose_dtype(dtype, experts[0].dtype)
    last = _last_file(source.index)
    identity = {"kind": kind, "state": source.identity(), "dtype": stored,
                "dtype_in_config": dtype is not None, **extra}
    work = open_work(out, identity, last)
    if work is None:
        return finished_result(out, source, plan.price)
    meter = Meter()
    with work, meter.stage("export"), provider as provide:
        resumed = len(work.records())
        rewrite = plan_rewrite(source.index, experts, stored, out, dtype is not None)
        sizes = {shard.planned.path.name: shard.planned.size for shard in rewrite.shards}
        needed = work.remaining(sizes) + companions.total_bytes(source.index)
        files.require_free(out, needed, "the export")
        _write_shards(work, source, rewrite, provide, plan.batch, progress)
        errors = relative_errors(source, work.records())
        card = model_card(source, kind=kind, dtype=stored, size=sum(sizes.values()),
                          errors=errors, command=command,
                          hub_id=source.index.revision is not None)
        _publish(work, source.index, rewrite, card, last,
                 {"format": 1, "identity": identity, "kind": kind, "dtype": stored,
                  "command": command, "relative_frobenius_error": errors})
    return finished_result(out, source, plan.price, meter.peak, resumed)


def _last_file(index: ExpertIndex) -> str:
    """The file without which nothing loads the checkpoint."""
    single = [path.name for path in index.files] == [SINGLE_NAME]
    return SINGLE_NAME if single else INDEX_NAME


def _write_shards(
    work: ExportWork, source: Source, rewrite: Rewrite, provide: Provider, batch: int,
    progress: ProgressCall | None,
) -> None:
    total, done = sum(len(shard.places) for shard in rewrite.shards), 0
    for shard in rewrite.shards:
        name = shard.planned.path.name
        if work.record(name) is None:
            _fetch(source.index, shard)
            notes: dict[str, dict[str, float]] = {"squared_error": {}}
            with work.writing(shard.planned, notes) as file:
                for tensor in shard.tensors:
                    fill_tensor(file, tensor, source.index, rewrite.dequantised)
                for number in range(len(source.units)):
                    done = _replace_unit(file, shard, source, number, provide, batch,
                                         notes["squared_error"], progress, done, total)
        else:
            done += len(shard.places)
        if progress:
            progress(done, total, name)


def _fetch(index: ExpertIndex, shard: Shard) -> None:
    paths = {tensor.source.path for tensor in shard.tensors}
    paths |= {tensor.scale.path for tensor in shard.tensors if tensor.scale}
    index.fetch_files(sorted(paths))


def _replace_unit(
    file: OutFile, shard: Shard, source: Source, number: int, provide: Provider, batch: int,
    squared: dict[str, float], progress: ProgressCall | None, done: int, total: int,
) -> int:
    """Write the replacements of one unit's experts in one shard; returns experts done."""
    unit = source.units[number].unit
    positions = [position for position, expert in enumerate(unit.experts)
                 if key_of(expert) in shard.places]
    if not positions:
        return done
    source.index.fetch([unit.experts[position] for position in positions])
    approximation = provide(number)
    with ExpertReader([unit.experts[position] for position in positions], batch) as reader:
        for part in reader.batches():
            for slot, weights in zip(part.positions, part.weights, strict=True):
                position = positions[slot]
                error = _replace(file, shard, unit.experts, position, approximation, weights)
                squared[unit.family] = squared.get(unit.family, 0.0) + error
            done += len(part.positions)
            if progress:
                progress(done, total, unit.key)
    return done


def _replace(
    file: OutFile, shard: Shard, experts: Sequence[Expert], position: int,
    approximation: Approximation, weights: Any,
) -> float:
    """Write one replacement; returns its squared error as stored."""
    original = weights.clone()
    replacement = approximation.replace(position, weights)
    stored = file.write_matrix(shard.places[key_of(experts[position])], replacement)
    return float(original.sub_(stored).norm().double().square())


def _publish(
    work: ExportWork, index: ExpertIndex, rewrite: Rewrite, card: str, last: str,
    manifest: dict[str, Any],
) -> None:
    companions.copy_companions(work, index)
    if rewrite.config == index.config:
        work.add("config.json", (index.root / "config.json").read_bytes())
    else:
        work.add("config.json", (json.dumps(rewrite.config, indent=2) + "\n").encode())
    work.add("README.md", card.encode())
    if last == INDEX_NAME:
        work.add(INDEX_NAME, _weight_index(rewrite).encode())
    work.publish(manifest, last)


def _weight_index(rewrite: Rewrite) -> str:
    entries = [entry for shard in rewrite.shards for entry in shard.planned.entries]
    total = sum(entry.nbytes for entry in entries)
    weight_map = {entry.name: entry.path.name for entry in entries}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
