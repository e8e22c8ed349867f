"""Dense exports of what a bank is compared with: truncated SVDs and experts rounded to nearest.

Source: docs/measurements.md, section Beside quantization.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from globe_stream.engine.progress import ProgressCall
from globe_stream.export.dense import DenseOrder, bank_provider, write_dense
from globe_stream.export.result import ExportResult
from globe_stream.export.shard_rewriter import Provider
from globe_stream.factorization.reconstruction import Approximation
from globe_stream.factorization.rounded_baseline import Rounded, RoundedSvd, Unchanged
from globe_stream.factorization.svd_baseline import SvdApproximation
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.io.records import Json
from globe_stream.memory.planner import ExportPlan, plan_export, plan_svd


def export_svd(
    run: Path,
    out: Path,
    *,
    bits: int | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    progress: ProgressCall | None = None,
) -> ExportResult:
    """As `export_dense`, but with every expert's truncated SVD of as many parameters.

    The rank of a group's experts is `GroupSizes.svd_rank`; with `bits` its factors are rounded to
    nearest. The run need not be trained: only its sizes are used. Source: docs/design.md, section
    Problem.
    """
    with open_trained_run(run, model=model, trained=False) as source:
        ranks = [fitted.group.sizes.svd_rank for fitted in source.groups]
        plan = _svd_plan(source, memory)

        def provide(number: int) -> Approximation:
            rank = ranks[number]
            return SvdApproximation(rank) if bits is None else RoundedSvd(rank, bits)

        settings: Json = {"ranks": list(ranks)}
        if bits is not None:
            settings["bits"] = bits
        order = DenseOrder(source, out, "svd", settings, dtype, command, plan)
        return write_dense(order, nullcontext(provide), progress)


def export_rounded(
    run: Path,
    out: Path,
    *,
    bits: int,
    rebuilt: bool = False,
    dtype: str | None = None,
    memory: int | None = None,
    model: str | None = None,
    command: str = "",
    progress: ProgressCall | None = None,
) -> ExportResult:
    """As `export_dense`, with the experts of the run rounded to nearest in `bits` bits.

    The original ones, or with `rebuilt` those that the run's banks reconstruct.
    """
    with open_trained_run(run, model=model, trained=rebuilt) as source:
        inner: AbstractContextManager[Provider]
        if rebuilt:
            plan = plan_export([fitted.group for fitted in source.groups], memory, rounds=True)
            inner = bank_provider(source, plan)
        else:
            plan = _svd_plan(source, memory)  # rounding takes less than a spectrum
            inner = nullcontext(_unchanged)
        settings: Json = {"bits": bits, "rebuilt": rebuilt}
        order = DenseOrder(source, out, "rounded", settings, dtype, command, plan)
        return write_dense(order, _rounded(inner, bits), progress)


def _unchanged(number: int) -> Approximation:
    del number
    return Unchanged()


@contextmanager
def _rounded(inner: AbstractContextManager[Provider], bits: int) -> Iterator[Provider]:
    with inner as provide:
        yield lambda number: Rounded(provide(number), bits)


def _svd_plan(source: TrainedRun, memory: int | None) -> ExportPlan:
    plans = [plan_svd(fitted.group.experts, memory) for fitted in source.groups]
    return max(plans, key=lambda one: one.estimate_bytes)
