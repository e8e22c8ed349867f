"""Kill -9 and resume, budgets, and everything that makes an export refuse."""

import errno
import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_runs import Recipe, make_run

from globe_stream.errors import InputError
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.store.run import Run

EXPORTS: dict[str, Callable[..., Any]] = {"dense": export_dense, "factors": export_factors}
INDEX = {"dense": "model.safetensors.index.json", "factors": "adapters.safetensors.index.json"}
SMALL = {"dense": {}, "factors": {"shard_bytes": 4_000}}


def _killed(kind: str, run: Path, out: Path, where: str, after: int) -> int:
    """Export in a child that kills itself, -9, at a call of progress or rename; its signal."""
    child = os.fork()
    if child == 0:
        calls, real = {"progress": 0, "rename": 0}, os.rename

        def count(what: str) -> None:
            calls[what] += 1
            if what == where and calls[what] == after:
                os.kill(os.getpid(), signal.SIGKILL)

        def rename(*names: Any) -> None:
            count("rename")
            real(*names)

        os.rename = rename  # type: ignore[assignment]
        EXPORTS[kind](run, out, progress=lambda *_: count("progress"), **SMALL[kind])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTS)
def test_kill_and_resume_gives_the_same_bytes(tmp_path: Path, run: Path, kind: str) -> None:
    EXPORTS[kind](run, tmp_path / "whole", **SMALL[kind])
    publishing = {"dense": 12, "factors": 18}[kind]  # by then all files are finished
    for where, after in (("progress", 2), ("progress", 4), ("rename", publishing)):
        assert _killed(kind, run, tmp_path / "cut", where, after) == -signal.SIGKILL
        assert not (tmp_path / "cut" / INDEX[kind]).exists()
    result = EXPORTS[kind](run, tmp_path / "cut", **SMALL[kind])
    assert result.resumed_files > 0
    assert _digests(tmp_path / "cut") == _digests(tmp_path / "whole")


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_second_command_changes_nothing(tmp_path: Path, run: Path, kind: str) -> None:
    EXPORTS[kind](run, tmp_path / "out", **SMALL[kind])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    result = EXPORTS[kind](run, tmp_path / "out", **SMALL[kind])
    assert "complete already" in result.note
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_bytes_do_not_depend_on_the_budget(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from globe_stream.memory import planner as plan

    export_dense(run, tmp_path / "all")
    for resident in (1, 0):
        monkeypatch.setattr(
            "globe_stream.export.order.plan_export",
            lambda *_, r=resident, **__: plan.ExportPlan(r, 3 - r, 0),
        )
        export_dense(run, tmp_path / f"banks-{resident}")
        assert _digests(tmp_path / f"banks-{resident}") == _digests(tmp_path / "all")


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_untrained_run_is_refused(tmp_path: Path, model: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", model, Recipe(stage="seeded"))
    with pytest.raises(InputError, match=r"not trained.*globe-stream train"):
        EXPORTS[kind](run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_changed_source_is_refused(tmp_path: Path, model: Path, kind: str) -> None:
    shutil.copytree(model, tmp_path / "model")
    run = make_run(tmp_path / "run", tmp_path / "model")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[0]
    text = shard.read_bytes().replace(b'"format":"pt"', b'"format":"np"')
    assert text != shard.read_bytes()
    shard.write_bytes(text)
    with pytest.raises(InputError, match=rf"changed since.*{shard.name}"):
        EXPORTS[kind](run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_moved_source_is_found(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "old")
    run = make_run(tmp_path / "run", tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(InputError, match="no such folder"):
        export_dense(run, tmp_path / "out")
    export_dense(run, tmp_path / "out", model=str(tmp_path / "new"))
    assert (tmp_path / "out" / INDEX["dense"]).exists()


@pytest.mark.parametrize("kind", EXPORTS)
def test_too_small_a_disk_is_refused_at_once(
    tmp_path: Path, run: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(InputError, match="disk is too full"):
        EXPORTS[kind](run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_disk_that_fills_up_leaves_no_index_and_can_be_resumed(
    tmp_path: Path, run: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, 0

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match="disk is full"):
        EXPORTS[kind](run, tmp_path / "out", **SMALL[kind])
    assert calls > 20
    assert not (tmp_path / "out" / INDEX[kind]).exists()
    monkeypatch.undo()
    EXPORTS[kind](run, tmp_path / "out", **SMALL[kind])
    assert (tmp_path / "out" / INDEX[kind]).exists()


def test_an_occupied_folder_is_left_alone(tmp_path: Path, run: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_dense(run, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_another_export_is_not_overwritten(tmp_path: Path, run: Path) -> None:
    export_factors(run, tmp_path / "out")
    before = _digests(tmp_path / "out")
    with pytest.raises(InputError, match="dtype BF16 instead of F32"):
        export_factors(run, tmp_path / "out", dtype="fp32")
    with pytest.raises(InputError, match="not empty"):
        export_dense(run, tmp_path / "out")
    assert _digests(tmp_path / "out") == before


def test_a_run_at_work_is_refused(tmp_path: Path, run: Path) -> None:
    with Run(run, writable=True), pytest.raises(InputError, match="held by another process"):
        export_dense(run, tmp_path / "out")


def test_a_budget_that_is_too_small_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match=r"memory 1\.00 MiB: stage export needs at least"):
        export_dense(run, tmp_path / "out", memory=1 << 20)
    assert not (tmp_path / "out").exists()


def test_an_unknown_dtype_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="dtype 'int8'"):
        export_dense(run, tmp_path / "out", dtype="int8")


@pytest.mark.parametrize("export", [export_dense, export_factors])
@pytest.mark.parametrize("place", ["/proc/x", "file/z", "new/file/../../file/z"])
def test_folders_that_cannot_be_made(tmp_path: Path, run: Path, export: Any, place: str) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / place
    with pytest.raises(InputError, match=r" while making the folder\."):
        export(run, out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("globe_stream.store.ledger.Ledger.append", full)
    with pytest.raises(InputError, match="the disk is full while writing the export"):
        export_dense(run, tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
