"""What an export says of itself: `globe_export.json`, and the records of its files."""

from dataclasses import dataclass, field
from pathlib import Path

from globe_stream.export.content import TensorList
from globe_stream.factorization.input_metric import Calibration
from globe_stream.io.file_digest import FileDigest
from globe_stream.io.records import Json, Record

MANIFEST = "globe_export.json"


@dataclass(frozen=True)
class FileRecord(FileDigest):
    """A finished file, and squared errors by family of the experts in it.

    `input_errors` are squared error and squared norm weighted by the inputs of their layers.
    """

    squared_errors: dict[str, float] = field(default_factory=dict)
    input_errors: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportManifest(Record):
    """`globe_export.json`: what an export is made of and by what `command`, and every file.

    `identity` are the options and the state of the run that decide its bytes;
    `relative_frobenius_error` has one for each family, of what was written; `calibration` is what
    adapters were fitted for, if for anything but the matrices; `tensors` are those of all files.
    """

    identity: Json
    kind: str
    dtype: str
    command: str
    relative_frobenius_error: dict[str, float]
    calibration: Calibration | None = None
    files: dict[str, FileDigest] = field(default_factory=dict)
    tensors: TensorList | None = None
    format: int = 1


def read_manifest(out: Path) -> ExportManifest:
    """The manifest of the export in `out`; InputError when it is damaged or of another version."""
    advice = "Another version of globe-stream wrote it, or it was edited: export again"
    return ExportManifest.read(out / MANIFEST, advice)
