"""Options of an export."""

from pathlib import Path

from pydantic import Field

from globe_stream.config.names import DtypeName, ExportFormat
from globe_stream.config.options import Options


class ExportConfig(Options):
    """What to write of a run, and where."""

    format: ExportFormat = Field(
        description="factors: bank, codes and adapters; model: a folder in compressed form that "
        "transformers loads; dense: the source checkpoint with reconstructed experts, which "
        "saves no size."
    )
    out: Path = Field(strict=False, description="Folder to write.")
    dtype: DtypeName | None = Field(
        None, description="Type of what is written (default: the checkpoint's)."
    )
