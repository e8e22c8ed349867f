"""The one writer against the safetensors library, and what it leaves when it fails."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from globe_stream.errors import GlobeError, InputError
from globe_stream.io import files
from globe_stream.io.safetensors_writer import (
    PlannedTensor,
    SafetensorsWriter,
    plan_file,
    writing,
)

PLAN = [PlannedTensor("b", "BF16", (2, 3)), PlannedTensor("a", "F32", (4,))]
VALUES = {"b": torch.arange(6).view(2, 3).bfloat16(), "a": torch.arange(4.0)}


def _write(path: Path) -> None:
    planned = plan_file(path, PLAN, {"format": "pt"})
    b, a = planned.entries
    with writing(planned) as file:
        file.write(a.start, VALUES["a"].numpy().tobytes())
        file.write_tensor(b.start + 6, VALUES["b"][1:])
        file.write_tensor(b.start, VALUES["b"][:1])


def test_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _write(path)
    loaded = load_file(path)
    assert set(loaded) == set(VALUES)
    assert all(torch.equal(loaded[name], VALUES[name]) for name in VALUES)
    assert path.stat().st_size == plan_file(path, PLAN, {"format": "pt"}).size
    assert list(tmp_path.iterdir()) == [path]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        _write(tmp_path / "x.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("parts", [[], [(0, 3)], [(0, 1), (2, 4)], [(1, 4)]])
def test_what_was_never_written_is_noticed(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    planned = plan_file(tmp_path / "x", [PlannedTensor("a", "U8", (4,))])

    def write() -> None:
        with writing(planned) as file:
            for start, stop in parts:
                file.write(planned.entries[0].start + start, bytes(stop - start))

    with pytest.raises(GlobeError, match=r"only the bytes .* were written"):
        write()
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_beyond_the_plan(tmp_path: Path) -> None:
    planned = plan_file(tmp_path / "x", [PlannedTensor("a", "U8", (4,))])
    with pytest.raises(ValueError, match="1 bytes beyond the plan"), writing(planned) as file:
        file.write(planned.entries[0].start, bytes(5))
    assert not list(tmp_path.iterdir())


def test_parts_in_any_order_and_overlapping_count_once(tmp_path: Path) -> None:
    size, generator = 64, torch.Generator().manual_seed(0)
    planned = plan_file(tmp_path / "x", [PlannedTensor("a", "U8", (size,))])
    content, covered = torch.arange(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.bool)
    with SafetensorsWriter(planned, tmp_path / "x") as file:
        while not covered.all():
            start = int(torch.randint(size, (1,), generator=generator))
            stop = min(size, start + 1 + int(torch.randint(9, (1,), generator=generator)))
            file.write_tensor(planned.entries[0].start + start, content[start:stop])
            covered[start:stop] = True
        file.finish()
    assert torch.equal(load_file(tmp_path / "x")["a"], content)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="mine"), writing(plan_file(path, PLAN)):
        raise RuntimeError("mine")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_space_is_noticed_before(tmp_path: Path) -> None:
    huge = plan_file(tmp_path / "x", [PlannedTensor("a", "F64", (2**50,))])
    with (
        pytest.raises(InputError, match=r"disk is too full: x needs 8192.00 TiB"),
        writing(huge),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(_: int) -> None:
        raise OSError(code, "full")

    monkeypatch.setattr(os, "fsync", fail)
    reason = "the disk is full" if code == errno.ENOSPC else "the disk quota is used up"
    with pytest.raises(InputError, match=rf"x.safetensors.*{reason}"):
        _write(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_full_device_is_reported(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "x.partial").symlink_to(full)
    with (
        pytest.raises(InputError, match="the disk is full"),
        writing(plan_file(tmp_path / "x", PLAN)),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_write_that_makes_no_progress_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(GlobeError, match="input/output error"):
        _write(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, view, at: real(file, view[:3], at))
    _write(tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], VALUES["a"])


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, at: real(file, [views[0][:7]], at))
    assert b"".join(bytes(piece) for piece in files.pieces(path, 1, 99)) == bytes(range(1, 99))
    with pytest.raises(GlobeError, match="ends at byte 100, 120 were expected"):
        list(files.pieces(path, 0, 120))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        files.write_text(tmp_path / "none" / "x", "text")
