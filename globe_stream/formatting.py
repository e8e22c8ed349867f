"""Sizes and durations as people write and read them."""

import re

from globe_stream.errors import InputError

_FACTORS = {"": 1, "B": 1}
_FACTORS |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
_FACTORS |= {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B|)\s*$", re.IGNORECASE)
_CANONICAL = {unit.lower(): unit for unit in _FACTORS}


def parse_size(text: str) -> int:
    """Bytes meant by `text`, such as "6GiB", "500 MB" or "1048576".

    Raises InputError when `text` is not a positive size.
    """
    match = _SIZE.match(text)
    if not match or float(match[1]) <= 0:
        raise InputError(
            f"size {text!r} is not understood: write a positive number and a unit, such as 6GiB"
        )
    return int(float(match[1]) * _FACTORS[_CANONICAL[match[2].lower()]])


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
