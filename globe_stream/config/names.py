"""Names that options take as values."""

from typing import Literal

ExportFormat = Literal["factors", "dense"]
DtypeName = Literal["bf16", "fp16", "fp32"]
