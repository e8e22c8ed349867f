"""Sizes and durations as people write and read them."""

import re
from decimal import Decimal

from globe_stream.errors import InputError

_FACTORS = {"": 1, "B": 1}
_FACTORS |= {f"{p}{end}": 1024 ** (i + 1) for i, p in enumerate("KMGT") for end in ("iB", "i", "")}
_FACTORS |= {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}
_SIZE = re.compile(
    r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[0-9]{1,2})?)\s*([KMGT]i?B?|B|)\s*", re.IGNORECASE
)
_TOO_MANY = 2**63
_LONGEST = 40
_CANONICAL = {unit.lower(): unit for unit in _FACTORS}


def parse_size(text: str) -> int:
    """Bytes meant by `text`, such as "6GiB", "500 MB", "8G" (binary, as 8GiB) or "1e9".

    Raises InputError when `text` is not a size of at least one byte, or above 2^63.
    """
    match = _SIZE.fullmatch(text)
    count = Decimal(match[1]) * _FACTORS[_CANONICAL[match[2].lower()]] if match else 0
    if not 1 <= count < _TOO_MANY:
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        raise InputError(
            f"size {shown!r} is not understood: write a positive number and a unit, such as 6GiB"
        )
    return int(count)


def format_bytes(count: float) -> str:
    """`count` bytes in the largest binary unit that keeps the number above one."""
    value, unit = float(count), "B"
    for prefix in "KMGT":
        if abs(value) < 1024:
            break
        value, unit = value / 1024, f"{prefix}iB"
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def count_of(count: int, thing: str) -> str:
    """`count` things in words: "1 shard", "2 shards"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def format_seconds(seconds: float) -> str:
    """`seconds` as h:mm:ss, or with one decimal below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"
