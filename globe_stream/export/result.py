"""What an export made, for people and for scripts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from globe_stream.errors import InputError, option
from globe_stream.export.model_card import NO_SAVING
from globe_stream.export.staging import FileRecord, read_manifest
from globe_stream.factorization.error_sums import ErrorSums, pooled_by
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.dtypes import DTYPES
from globe_stream.io.records import Compact


@dataclass(frozen=True, kw_only=True)
class ExportResult(Compact):
    """A finished export. Errors are relative Frobenius, by family; bytes are those on disk.

    `source_bytes` are those that it stands for: the experts of an export of factors, the whole
    checkpoint of a dense one. `url` is where it was uploaded to.
    """

    format: int = 1
    out: Path
    kind: str
    dtype: str
    files: int
    bytes: int
    source_bytes: int
    relative_errors: dict[str, float]
    resumed_files: int
    price_bytes: int
    peak_bytes: int
    note: str
    url: str | None = None


def choose_dtype(name: str | None, source: str) -> str:
    """The dtype for replaced experts: `name`, or that of the source, or BF16 if quantised."""
    if name is None:
        return source if source in DTYPES.values() else "BF16"
    if name.lower() not in DTYPES:
        raise InputError(f"{option('dtype')} {name!r} is not known: use one of {', '.join(DTYPES)}")
    return DTYPES[name.lower()]


def relative_errors(source: TrainedRun, records: Mapping[str, FileRecord]) -> dict[str, float]:
    """relF by family from the squared errors noted beside the finished files."""
    errors = pooled_by(
        (family, ErrorSums(squared_error=value))
        for record in records.values()
        for family, value in record.squared_errors.items()
    )
    norms = pooled_by(
        (fitted.group.family, ErrorSums(squared_norm=fitted.recorded_errors.squared_norm))
        for fitted in source.groups
    )
    return {family: (errors[family] + norms[family]).relative_error for family in sorted(errors)}


def finished_result(
    out: Path, source: TrainedRun, estimate_bytes: int, peak: int, resumed: int | None = None
) -> ExportResult:
    """The result recorded in the manifest of `out`; `resumed` None says it was complete already."""
    manifest = read_manifest(out)
    listed = manifest.files
    return ExportResult(
        out=out,
        kind=manifest.kind,
        dtype=manifest.dtype,
        files=len(listed),
        bytes=sum(entry.bytes for entry in listed.values()),
        source_bytes=_source_bytes(source, manifest.kind),
        relative_errors=manifest.relative_frobenius_error,
        resumed_files=len(listed) if resumed is None else resumed,
        price_bytes=estimate_bytes,
        peak_bytes=peak,
        note=_note(manifest.kind, resumed is None),
    )


def _source_bytes(source: TrainedRun, kind: str) -> int:
    if kind == "factors":
        return sum(e.nbytes for fitted in source.groups for e in fitted.group.experts)
    return sum(header.size for header in source.index.headers)


def _note(kind: str, complete: bool) -> str:
    parts = ["It was complete already."] if complete else []
    return " ".join([*parts, NO_SAVING if kind in ("dense", "svd", "rounded") else ""]).strip()
