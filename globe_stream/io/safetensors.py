"""Headers of safetensors files: every tensor's name, dtype, shape and byte range, and no data.

A file is an unsigned little-endian 64-bit length, that many bytes of JSON, and the tensors' bytes
without gaps. Source: the safetensors format description.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from globe_stream.errors import InputError
from globe_stream.io.dtypes import ITEM_BYTES
from globe_stream.io.system_errors import explained

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_SIDES = 64  # torch's limit of dimensions
_SHOWN = 200  # letters of a name or value in a message


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: bytes `start` to `stop`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says about itself; `tensors` are in the order of their bytes."""

    path: Path
    size: int
    sha256: str
    metadata: dict[str, str]
    tensors: tuple[TensorEntry, ...]


def read_header(path: Path) -> Header:
    """Read and check the header of the file `path`; InputError when it cannot be trusted."""
    with explained(path, "reading the header"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size

        def fetch(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return load_header(path, size, fetch)


def load_header(path: Path, size: int, fetch: Callable[[int, int], bytes]) -> Header:
    """The checked header of a file of `size` bytes, where `fetch(start, stop)` returns its bytes.

    `path` is where the file lies, or will lie once it is fetched; it is not opened.
    """
    if size < PREFIX_BYTES:
        raise InputError(
            f"{path}: is no safetensors file: {size} bytes are too few for a header. "
            "Download it again."
        )
    length = int.from_bytes(fetch(0, PREFIX_BYTES), "little")
    if length > MAX_HEADER_BYTES or PREFIX_BYTES + length > size:
        raise InputError(
            f"{path}: is no safetensors file or is truncated: its header claims {length:,} bytes, "
            f"{size - PREFIX_BYTES:,} are present. Download it again."
        )
    raw = fetch(PREFIX_BYTES, PREFIX_BYTES + length)
    fields = _parse_json(path, raw)
    metadata = _metadata(path, fields.pop("__metadata__", None))
    base = PREFIX_BYTES + length
    entries = [_entry(path, base, name, value) for name, value in fields.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_layout(path, base, size, entries)
    return Header(path, size, hashlib.sha256(raw).hexdigest(), metadata, tuple(entries))


def _parse_json(path: Path, raw: bytes) -> dict[str, object]:
    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: has a damaged header ({reason}). Download the file again."
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: has a damaged header (no JSON object). Download the file again.")
    return fields


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"{shown(twice)} stands in it twice")
    return fields


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InputError(
            f"{path}: has a damaged header (__metadata__ does not map text to text). "
            "Download the file again."
        )
    return value


def shown(text: object) -> str:
    """A name or value from a header, for a message of one line."""
    plain = text if isinstance(text, str) and text.isprintable() else repr(text)
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."


def _is_text(name: str) -> bool:
    """Whether a name can be written down: no half of a surrogate pair is in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _numbers(value: object) -> tuple[int, ...] | None:
    """`value` as a short list of numbers from 0 that fit 63 bits; None if it is none."""
    if not isinstance(value, list) or len(value) > _MAX_SIDES:
        return None
    fits = all(type(number) is int and 0 <= number < 1 << 63 for number in value)
    return tuple(value) if fits else None


def _entry(path: Path, base: int, name: str, value: object) -> TensorEntry:
    tensor = shown(name)
    fields = value if isinstance(value, dict) else {}
    if not {"dtype", "shape", "data_offsets"} <= set(fields) or not _is_text(name):
        raise InputError(
            f"{path}: the header's entry for {tensor} is incomplete. Download the file again."
        )
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InputError(f"{path}: tensor {tensor} has the unsupported dtype {shown(dtype)}.")
    shape, offsets = _numbers(fields["shape"]), _numbers(fields["data_offsets"])
    if shape is None or offsets is None or len(offsets) != 2:
        raise InputError(
            f"{path}: the header lies about tensor {tensor}: shape {shown(fields['shape'])} at "
            f"{shown(fields['data_offsets'])} are no sides and bytes. Download the file again."
        )
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise InputError(
            f"{path}: the header lies about tensor {tensor}: {dtype} {list(shape)} takes "
            f"{expected:,} bytes, its offsets say {end - begin:,}. Download the file again."
        )
    return TensorEntry(name, dtype, shape, path, base + begin, base + end)


def _check_layout(path: Path, base: int, size: int, entries: list[TensorEntry]) -> None:
    position = base
    for entry in entries:
        if entry.start != position:
            problem = "overlaps the one before it" if entry.start < position else "follows a gap"
            raise InputError(
                f"{path}: the header lies about tensor {shown(entry.name)}: it {problem} "
                f"(byte {entry.start:,} instead of {position:,}). Download the file again."
            )
        if entry.stop > size:
            raise InputError(
                f"{path}: tensor {shown(entry.name)} is truncated: {entry.nbytes:,} bytes "
                f"expected, {max(0, size - entry.start):,} present. Download the file again."
            )
        position = entry.stop
    if position != size:
        raise InputError(
            f"{path}: {size - position:,} bytes follow the last tensor, which the header does not "
            "name. Download the file again."
        )
