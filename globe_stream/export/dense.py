"""A dense export: the source checkpoint with reconstructed experts, shard by shard.

Memory does not depend on the model's size: one expert, one piece of a tensor and, if the budget
allows, the banks. Source: docs/design.md, section Export formats.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.index import INDEX_NAME, SINGLE_NAME
from globe_stream.engine.progress import ProgressCall, Tally
from globe_stream.export import auxiliary_files as companions
from globe_stream.export.carry_out import carry_out
from globe_stream.export.model_card import model_card
from globe_stream.export.result import (
    ExportResult,
    choose_dtype,
    relative_errors,
)
from globe_stream.export.shard_plan import Rewrite, expected_tensors, plan_rewrite
from globe_stream.export.shard_rewriter import Provider, ShardRewriter
from globe_stream.export.staging import ExportManifest, ExportWork
from globe_stream.factorization.bank_cache import BankCache
from globe_stream.factorization.reconstruction import BankApproximation
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.memory.planner import ExportPlan, plan_export


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

    Up and gate matrices of the run's groups are replaced; all else is copied byte for byte. Of a
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
    with open_trained_run(run, model=model) as source:
        plan = plan_export([fitted.group for fitted in source.groups], memory)
        order = DenseOrder(source, out, "dense", {}, dtype, command, plan)
        return write_dense(order, bank_provider(source, plan), progress)


@contextmanager
def bank_provider(source: TrainedRun, plan: ExportPlan) -> Iterator[Provider]:
    """Reconstructions from the run's banks, of which `plan` says how many stay in memory."""
    with BankCache(plan.resident) as banks:
        yield lambda number: BankApproximation(
            source.groups[number], banks.bank(source.groups[number])
        )


@dataclass(frozen=True)
class DenseOrder:
    """What is to be exported, and its settings."""

    source: TrainedRun
    out: Path
    kind: str
    settings: Json
    dtype: str | None
    command: str
    plan: ExportPlan

    @property
    def stored(self) -> str:
        """The dtype of tensors that hold replaced experts."""
        return choose_dtype(self.dtype, self.source.groups[0].group.experts[0].dtype)

    @property
    def last(self) -> str:
        """The file without which nothing loads the checkpoint."""
        index = self.source.index
        single = [index.name_of(path) for path in index.files] == [SINGLE_NAME]
        return SINGLE_NAME if single else INDEX_NAME

    @property
    def identity(self) -> Json:
        """What the bytes of the export depend on."""
        return {
            "kind": self.kind,
            "state": self.source.identity(),
            "dtype": self.stored,
            "dtype_in_config": self.dtype is not None,
            **self.settings,
        }


def write_dense(
    order: DenseOrder, provider: AbstractContextManager[Provider], progress: ProgressCall | None
) -> ExportResult:
    """Write the checkpoint of `order` with what `provider` puts in the experts' place."""
    source = order.source

    def write(work: ExportWork) -> None:
        experts = [expert for fitted in source.groups for expert in fitted.group.experts]
        chosen = order.dtype is not None
        rewrite = plan_rewrite(source.index, experts, order.stored, order.out, chosen)
        sizes = {work.name_of(shard.planned): shard.planned.size for shard in rewrite.shards}
        companions.fetch_companions(source.index)
        needed = work.remaining(sizes) + companions.total_bytes(source.index)
        files.require_free(order.out, needed, "the export")
        tally = Tally(sum(len(shard.places) for shard in rewrite.shards), progress)
        with provider as provide:
            writer = ShardRewriter(source, rewrite.dequantised, provide, order.plan.batch, tally)
            for shard in rewrite.shards:
                writer.write(work, shard)
        _publish(work, order, rewrite, sum(sizes.values()))

    return carry_out(source, order.out, order.identity, order.last, order.plan, write)


def _publish(work: ExportWork, order: DenseOrder, rewrite: Rewrite, size: int) -> None:
    index = order.source.index
    errors = relative_errors(order.source, work.records())
    card = model_card(
        order.source,
        kind=order.kind,
        dtype=order.stored,
        size=size,
        errors=errors,
        command=order.command,
        hub_id=index.revision is not None,
    )
    companions.copy_companions(work, index)
    if rewrite.config == index.config:
        work.copy(index.root / "config.json")
    else:
        work.add("config.json", (json.dumps(rewrite.config, indent=2) + "\n").encode())
    work.add("README.md", card.encode())
    if order.last == INDEX_NAME:
        work.add(INDEX_NAME, _weight_index(rewrite, work.out).encode())
    work.publish(
        ExportManifest(order.identity, order.kind, order.stored, order.command, errors),
        order.last,
        expected_tensors(index),
    )


def _weight_index(rewrite: Rewrite, out: Path) -> str:
    entries = [entry for shard in rewrite.shards for entry in shard.planned.entries]
    total = sum(entry.nbytes for entry in entries)
    weight_map = {entry.name: entry.path.relative_to(out).as_posix() for entry in entries}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
