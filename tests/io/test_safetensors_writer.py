"""The streaming writer against the safetensors library, and what it leaves when it fails."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from globe_stream.errors import InputError
from globe_stream.io import shard_writer as writer
from globe_stream.io.shard_writer import PlannedTensor, ShardWriter, file_bytes, write_text

PLAN = [PlannedTensor("b", "BF16", (2, 3)), PlannedTensor("a", "F32", (4,))]
VALUES = {"b": torch.arange(6).view(2, 3).bfloat16(), "a": torch.arange(4.0)}


def _write(path: Path) -> None:
    with ShardWriter(path, PLAN, {"format": "pt"}) as out:
        out.append(VALUES["b"][:1])
        out.append(VALUES["b"][1:])
        out.append(VALUES["a"].numpy().tobytes())


def test_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _write(path)
    loaded = load_file(path)
    assert set(loaded) == set(VALUES)
    assert all(torch.equal(loaded[name], VALUES[name]) for name in VALUES)
    assert path.stat().st_size == file_bytes(PLAN, {"format": "pt"})
    assert list(tmp_path.iterdir()) == [path]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        _write(tmp_path / "x.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("count", [0, 3, 5])
def test_wrong_number_of_bytes_leaves_nothing(tmp_path: Path, count: int) -> None:
    with (
        pytest.raises(ValueError, match="than the header plans"),
        ShardWriter(tmp_path / "x", [PlannedTensor("a", "U8", (4,))]) as out,
    ):
        out.append(bytes(count))
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    with pytest.raises(ValueError, match="22 bytes less"), ShardWriter(path, PLAN) as out:
        out.append(VALUES["b"][:1])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_space_is_noticed_before(tmp_path: Path) -> None:
    huge = [PlannedTensor("a", "F64", (2**50,))]
    with pytest.raises(InputError, match=r"disk is too full: 8192.00 TiB are needed"):
        ShardWriter(tmp_path / "x", huge)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(_: int) -> None:
        raise OSError(code, "full")

    monkeypatch.setattr(writer.os, "fsync", fail)
    with pytest.raises(InputError, match=r"x.safetensors: the disk is full"):
        _write(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_full_device_is_reported(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "x.partial").symlink_to(full)
    with pytest.raises(InputError, match="the disk is full"):
        ShardWriter(tmp_path / "x", PLAN)
    assert not list(tmp_path.iterdir())


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "none" / "x", "text")
