"""Which parts of a text are scored."""

from typing import ClassVar

from pydantic import Field

from globe_stream.config.options import Options


class Windows(Options):
    """`count` windows of `length` tokens, `stride` bytes apart.

    Of a window, every token but the first is predicted from those before it.
    """

    prefix: ClassVar[str] = "window_"

    count: int = Field(64, ge=1, description="Windows of text at most.")
    length: int = Field(256, ge=2, description="Tokens in a window.")
    stride: int = Field(9_000, ge=1, description="Bytes from one window's start to the next.")
