"""Headers: what the library wrote is understood, and what cannot be trusted is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from globe_stream.errors import InputError
from globe_stream.io.dtypes import ITEM_BYTES
from globe_stream.io.safetensors import read_header
from globe_stream.io.safetensors_writer import PlannedTensor, plan_file


def test_agrees_with_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "a": torch.ones(5, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
    }
    save_file(tensors, path, {"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.size == path.stat().st_size
    raw = path.read_bytes()
    with safe_open(path, "pt") as file:
        assert {entry.name for entry in header.tensors} == set(file.keys())
        for entry in header.tensors:
            stored = file.get_tensor(entry.name)
            assert entry.shape == tuple(stored.shape)
            expected = stored.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert raw[entry.start : entry.stop] == expected


def test_hash_is_of_the_header_alone(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    save_file({"x": torch.zeros(4)}, first)
    save_file({"x": torch.ones(4)}, second)
    save_file({"y": torch.zeros(4)}, third)
    assert read_header(first).sha256 == read_header(second).sha256 != read_header(third).sha256


def _write(path: Path, fields: Any, data: bytes) -> Path:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    [
        ({"w": _entry(0, 8, [2])}, b"1234", "tensor w is truncated: 8 bytes expected, 4 present"),
        ({"w": _entry(0, 8, [3])}, b"12345678", "lies about tensor w"),
        ({"w": _entry(0, 8, [2], "Q7")}, b"12345678", "unsupported dtype Q7"),
        (
            {"v": _entry(0, 4, [1]), "w": _entry(8, 12, [1])},
            b"1" * 12,
            "w: it follows a gap",
        ),
        ({"v": _entry(0, 8, [2]), "w": _entry(4, 8, [1])}, b"1" * 8, "w: it overlaps"),
        ({"v": _entry(0, 4, [1])}, b"1" * 8, "4 bytes follow the last tensor"),
        ({"v": {"dtype": "F32"}}, b"", "entry for v is incomplete"),
        (b"[1, 2]", b"", "no JSON object"),
        (b"{'a'", b"", "damaged header"),
        (b'{"a": 1, "a": 2}', b"", "a stands in it twice"),
        ({"__metadata__": [1]}, b"", "__metadata__ does not map text to text"),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__ does not map text to text"),
        ({"w": _entry(0, 8, [2.0])}, b"12345678", r"lies about tensor w: shape \[2.0\]"),
        ({"w": _entry(0, 8, [-1, -2])}, b"12345678", r"lies about tensor w: shape \[-1, -2\]"),
        ({"w": _entry(0, 4, [True])}, b"1234", r"lies about tensor w: shape \[True\]"),
        ({"w": _entry(0, 8, [2**63])}, b"12345678", r"tensor w: shape \[9223372036854775808\]"),
        ({"w": _entry(0, 8, [10**4000] * 9)}, b"12345678", "lies about tensor w: shape"),
        ({"w": _entry(0, 4, [1] * 65)}, b"1234", "lies about tensor w: shape"),
        ({"w": _entry(0, 4.5, [1])}, b"1234", r"at \[0, 4.5\] are no sides and bytes"),
        ({"w": {**_entry(0, 4, [1]), "data_offsets": [0, 2, 4]}}, b"1234", "no sides and bytes"),
        ({"w": {**_entry(0, 4, [1]), "dtype": ["F32"]}}, b"1234", "unsupported dtype"),
        ({"a\nb": _entry(0, 8, [3])}, b"12345678", r"lies about tensor 'a\\nb'"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}', b"1", "incomplete"),
    ],
)
def test_refuses(tmp_path: Path, fields: Any, data: bytes, message: str) -> None:
    path = _write(tmp_path / "bad.safetensors", fields, data)
    with pytest.raises(InputError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", (2**40).to_bytes(8, "little") + b"{}"])
def test_refuses_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no safetensors file"):
        read_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_planned_header_is_read_back(tmp_path: Path, dtype: str) -> None:
    planned = [PlannedTensor("a", dtype, (2, 3)), PlannedTensor("b", "U8", (5,))]
    path = tmp_path / "x.safetensors"
    file = plan_file(path, planned, {"k": "v"})
    path.write_bytes(file.header + bytes(6 * ITEM_BYTES[dtype] + 5))
    assert path.stat().st_size == file.size
    header = read_header(path)
    found = [PlannedTensor(entry.name, entry.dtype, entry.shape) for entry in header.tensors]
    assert found == planned
    assert header.metadata == {"k": "v"}
