"""A dense export: the source checkpoint with reconstructed experts, shard by shard.

Memory does not depend on the model's size: one expert, one piece of a tensor and, if the budget
allows, the banks. Source: docs/design.md, section Export formats.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from globe_stream.checkpoint.json_files import INDEX_NAME, SINGLE_NAME
from globe_stream.engine.progress import Tally
from globe_stream.export import auxiliary_files as companions
from globe_stream.export.order import Export, ExportOptions, ExportOrder
from globe_stream.export.result import ExportResult
from globe_stream.export.shard_plan import Rewrite, expected_tensors, plan_rewrite
from globe_stream.export.shard_rewriter import Rebuilt, Replacements, ShardRewriter
from globe_stream.export.staging import ExportWork
from globe_stream.factorization.bank_cache import BankCache
from globe_stream.factorization.reconstruction import GroupFits
from globe_stream.io import files
from globe_stream.io.records import Json


def export_dense(run: Path, out: Path, **options: Unpack[ExportOptions]) -> ExportResult:
    """Write the checkpoint of the run in `run` to `out` with its experts reconstructed.

    Up and gate matrices of the run's groups are replaced; all else is copied byte for byte. Of a
    quantised checkpoint every tensor is written unquantised, and the scales and the quantisation
    settings are left out. The same call again continues. Dense export saves no size.

    Args:
        options: see `ExportOrder`; the dtype is that of the tensors that hold replaced experts.

    Raises InputError when the run is not trained, its checkpoint changed, `out` holds something
    else, the disk is too small or the budget is; nothing loadable is left behind.
    """
    order = ExportOrder(run, out, **options)
    with order.source() as source:
        return DenseExport(source, order).carry_out()


@dataclass(frozen=True)
class DenseExport(Export):
    """The source checkpoint with `replacements` in the experts' place."""

    kind = "dense"

    @contextmanager
    def replacements(self) -> Iterator[Replacements]:
        """Reconstructions from the run's banks, of which the plan says how many stay in memory."""
        with BankCache(self.plan.resident) as banks:
            yield Rebuilt(self.source, GroupFits(banks))

    @property
    def settings(self) -> Json:
        """Whether config.json names the dtype."""
        return {"dtype_in_config": self.order.dtype is not None}

    @property
    def last(self) -> str:
        """The index, or the only file."""
        index = self.source.index
        single = [index.name_of(path) for path in index.files] == [SINGLE_NAME]
        return SINGLE_NAME if single else INDEX_NAME

    def write(self, work: ExportWork) -> None:
        """Every shard of the source anew."""
        source, order = self.source, self.order
        experts = [expert for fitted in source.groups for expert in fitted.group.experts]
        chosen = order.dtype is not None
        rewrite = plan_rewrite(source.index, experts, self.stored, order.out, chosen)
        sizes = {work.name_of(shard.planned): shard.planned.size for shard in rewrite.shards}
        companions.fetch_companions(source.index)
        needed = work.remaining(sizes) + companions.total_bytes(source.index)
        files.require_free(order.out, needed, "the export")
        tally = Tally(sum(len(shard.places) for shard in rewrite.shards), order.progress)
        with self.replacements() as found:
            writer = ShardRewriter(source, rewrite.dequantised, found, self.plan.batch, tally)
            for shard in rewrite.shards:
                writer.write(work, shard)
        self._publish(work, rewrite, sum(sizes.values()))

    def _publish(self, work: ExportWork, rewrite: Rewrite, size: int) -> None:
        index, manifest = self.source.index, self.manifest(work)
        companions.copy_companions(work, index)
        if rewrite.config == index.config:
            work.copy(index.root / "config.json")
        else:
            work.add("config.json", (json.dumps(rewrite.config, indent=2) + "\n").encode())
        work.add("README.md", self.card(manifest, size))
        if self.last == INDEX_NAME:
            work.add(INDEX_NAME, _weight_index(rewrite, work.out).encode())
        work.publish(manifest, self.last, expected_tensors(index))


def _weight_index(rewrite: Rewrite, out: Path) -> str:
    entries = [entry for shard in rewrite.shards for entry in shard.planned.entries]
    total = sum(entry.nbytes for entry in entries)
    weight_map = {entry.name: entry.path.relative_to(out).as_posix() for entry in entries}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
