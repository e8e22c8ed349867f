"""verify finds every kind of damage and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from globe_stream.commands.verify import verify
from globe_stream.errors import InputError
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.export.staging import WORK
from globe_stream.store.run import Run


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def _chunks(run: Path, array: str) -> list[Path]:
    return sorted(p for p in (run / "run.zarr" / array / "c").rglob("*") if p.is_file())


def test_a_sound_run_has_no_problems(run: Path) -> None:
    told: list[tuple[int, int]] = []
    found = verify(run, progress=lambda done, total, _: told.append((done, total)))
    assert found.problems == ()
    assert found.arrays == 14
    assert found.bytes > 2 * 5 * 18 * 32 * 4
    assert told[-1] == (14, 14)
    assert json.loads(json.dumps(found.to_json()))["ok"] is True


@pytest.mark.parametrize("array", ["up/bank", "gate/codes/values", "up/experts"])
def test_one_flipped_bit(copy: Path, array: str) -> None:
    chunk = _chunks(copy, array)[0]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    (problem,) = verify(copy).problems
    assert array in problem
    assert "damaged" in problem


@pytest.mark.parametrize("array", ["gate/bank", "up/codes/count"])
def test_a_missing_chunk(copy: Path, array: str) -> None:
    _chunks(copy, array)[0].unlink()
    (problem,) = verify(copy).problems
    assert array in problem
    assert "1 of 1 chunks are missing" in problem


def test_a_missing_array(copy: Path) -> None:
    shutil.rmtree(copy / "run.zarr" / "up" / "norms")
    (problem,) = verify(copy).problems
    assert "up/norms" in problem


def test_a_missing_group(copy: Path) -> None:
    with Run(copy, writable=True) as run:
        run.commit({}, {"up/next/bank": torch.ones(2, 3, 4), "up/next/metric": torch.ones(3)})
    assert verify(copy).problems == ()
    shutil.rmtree(copy / "run.zarr" / "up" / "next")
    problems = verify(copy).problems
    assert len(problems) == 2
    assert "up/next/bank: the array is missing" in problems[0]


def test_an_array_of_the_wrong_size(copy: Path) -> None:
    shutil.rmtree(copy / "run.zarr" / "up" / "errors")
    shutil.copytree(
        copy / "run.zarr" / "up" / "codes" / "indices", copy / "run.zarr" / "up" / "errors"
    )
    (problem,) = verify(copy).problems
    assert "up/errors: has shape (36,)" in problem


@pytest.mark.parametrize("export", [export_dense, export_factors])
def test_exports(run: Path, tmp_path: Path, export: object) -> None:
    out = tmp_path / "out"
    export(run, out)  # type: ignore[operator]
    sound = verify(out)
    assert sound.problems == ()
    assert sound.bytes == sum(
        p.stat().st_size for p in out.iterdir() if p.name != "globe_export.json"
    )
    shards = sorted(out.glob("*.safetensors"))
    data = bytearray(shards[0].read_bytes())
    data[-1] ^= 1
    shards[0].write_bytes(data)
    (out / "config.json" if (out / "config.json").exists() else out / "README.md").unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-3])
    problems = verify(out).problems
    assert len(problems) == 3
    assert any("sha256" in one and shards[0].name in one for one in problems)
    assert any("missing" in one for one in problems)
    assert any("bytes" in one and shards[1].name in one for one in problems)


def test_an_unfinished_export_is_a_problem(run: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, *_: object) -> None:
        if done > 8:
            raise Stop

    with pytest.raises(Stop):
        export_factors(run, tmp_path / "out", shard_bytes=4_000, progress=stop)
    assert (tmp_path / "out" / WORK).exists()
    (problem,) = verify(tmp_path / "out").problems
    assert "unfinished" in problem


def test_neither_run_nor_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither"):
        verify(tmp_path)
