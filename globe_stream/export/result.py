"""What an export made, for people and for scripts."""

from dataclasses import dataclass
from pathlib import Path

from globe_stream.errors import InputError, option
from globe_stream.factorization.input_metric import Calibration
from globe_stream.io.dtypes import DTYPES
from globe_stream.io.records import Compact

NO_SAVING = (
    "This is a dense export: every expert is written out at full size, so it saves no size on "
    "disk or in memory. An export as a model is the small one."
)


@dataclass(frozen=True, kw_only=True)
class ExportResult(Compact):
    """A finished export. Errors are relative Frobenius, by family; bytes are those on disk.

    `source_bytes` are those that it stands for: the experts of an export of factors, the whole
    checkpoint of a dense one. `calibration` is what adapters were fitted for besides the matrices.
    `url` is where it was uploaded to.
    """

    format: int = 1
    out: Path
    kind: str
    dtype: str
    files: int
    bytes: int
    source_bytes: int
    relative_errors: dict[str, float]
    calibration: Calibration | None = None
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
