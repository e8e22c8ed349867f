"""Options of an export."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from globe_stream.config.names import ExportDtype, ExportFormat
from globe_stream.config.options import Options
from globe_stream.errors import InputError, option

_BITS = re.compile(r"([2-8]),([2-8])")


class ExportConfig(Options):
    """What to write of a run, and where."""

    format: ExportFormat = Field(
        description="factors: bank, codes and adapters; model: a folder in compressed form that "
        "transformers loads; dense: the source checkpoint with reconstructed experts, which "
        "saves no size."
    )
    out: Path = Field(strict=False, description="Folder to write.")
    dtype: ExportDtype | None = Field(
        None,
        description="Type of what is written (default: the checkpoint's); int8 is 8,8 bits.",
    )
    bits: str | None = Field(
        None,
        description="Bits of an element of bank and adapters, 2 to 8 each, as 8,4 "
        "(default: not quantised).",
        json_schema_extra={"metavar": "BANK,ADAPTERS"},
    )
    calibrate: tuple[Annotated[Path, Field(strict=False)], ...] = Field(
        (),
        strict=False,
        description="Text file to run the checkpoint on, so that adapters are fitted for the "
        "inputs that each layer sees; may be given several times (default: the matrices alone "
        "decide).",
        json_schema_extra={"metavar": "TEXT"},
    )

    def check(self) -> None:
        """Bits are two numbers; a dense export has neither them nor calibrated adapters."""
        _ = self.quantized
        if self.calibrate and self.format == "dense":
            raise InputError(
                f"{option('calibrate')}: a dense export has no adapters to fit. "
                "Export in the format model or factors"
            )

    @property
    def quantized(self) -> tuple[int, int] | None:
        """Bits of bank and adapters; None where they are not quantised."""
        text = "8,8" if self.dtype == "int8" and self.bits is None else self.bits
        if text is None:
            return None
        match = _BITS.fullmatch(text)
        if match is None:
            raise InputError(
                f"{option('bits')} {text!r}: give the bits of bank and adapters, 2 to 8 each, "
                "as 8,4"
            )
        if self.format == "dense":
            raise InputError(
                f"{option('bits')} {text}: a dense export is not quantised. "
                "Export in the format model or factors"
            )
        return int(match[1]), int(match[2])

    @property
    def stored(self) -> str | None:
        """The type of what is not quantised; None for the checkpoint's."""
        return None if self.dtype == "int8" else self.dtype
