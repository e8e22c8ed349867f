"""Names that options take as values."""

from typing import Literal

ExportFormat = Literal["factors", "dense", "model"]
DtypeName = Literal["bf16", "fp16", "fp32"]
ExportDtype = Literal["bf16", "fp16", "fp32", "int8"]
