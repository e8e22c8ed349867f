"""What every export does around its own work: begin or continue, measure, say what came of it."""

from collections.abc import Callable
from pathlib import Path

from globe_stream.engine.precision import arithmetic_of
from globe_stream.export.result import ExportResult, finished_result
from globe_stream.export.staging import ExportWork, open_work
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.records import Json
from globe_stream.memory.meter import Meter
from globe_stream.memory.planner import ExportPlan


def carry_out(
    source: TrainedRun,
    out: Path,
    identity: Json,
    last: str,
    plan: ExportPlan,
    write: Callable[[ExportWork], None],
) -> ExportResult:
    """Have `write` make the export `identity` of `source` in `out`, unless it is complete.

    `last` is the file without which nothing loads it. `write` publishes what it wrote.
    """
    meter = Meter()
    with meter.stage("export"):
        work = open_work(out, identity, last)
    if work is None:
        return finished_result(out, source, plan.estimate_bytes, meter.peak)
    with work, arithmetic_of(source.run), meter.stage("export"):
        resumed = len(work.records())
        write(work)
    return finished_result(out, source, plan.estimate_bytes, meter.peak, resumed)
