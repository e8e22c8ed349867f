"""`export`: a trained run as factors, as a model in compressed form, or as a dense checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from globe_stream.commands.calibration import text_inputs
from globe_stream.commands.session import memory_limit
from globe_stream.config import ExportConfig, RuntimeConfig
from globe_stream.engine.progress import step_bar
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.export.hub import push_to_hub as upload
from globe_stream.export.hub import require_repository
from globe_stream.export.model import export_model
from globe_stream.export.result import ExportResult
from globe_stream.memory import allocator

FORMATS: dict[str, Callable[..., ExportResult]] = {
    "factors": export_factors,
    "dense": export_dense,
    "model": export_model,
}


def export(
    path: Path,
    wanted: ExportConfig,
    *,
    model: str | None = None,
    runtime: RuntimeConfig,
    command: str = "",
    push_to_hub: str | None = None,
    silent: bool = False,
) -> ExportResult:
    """Write the trained run at `path` as `wanted` says; returns what was written.

    `push_to_hub` is a repository (owner/name) to upload the finished export to. The same call
    again continues. Raises InputError for a run that is not trained, a source that changed, a
    folder that holds something else, and budgets or disks too small.
    """
    if push_to_hub is not None:
        require_repository(push_to_hub)
    bits = wanted.quantized
    allocator.return_freed_memory()
    limit = memory_limit(runtime, None)
    inputs = None
    if wanted.calibrate:
        inputs = text_inputs(path, wanted.calibrate, model=model, memory=limit, silent=silent)
    with step_bar(f"export {wanted.format}", silent=silent) as progress:
        write = FORMATS[wanted.format]
        result = write(
            path,
            wanted.out,
            dtype=wanted.stored,
            memory=limit,
            model=model,
            command=command,
            progress=progress,
            inputs=inputs,
            **({"bits": bits} if bits else {}),
        )
    if push_to_hub is None:
        return result
    return replace(result, url=upload(wanted.out, push_to_hub))
