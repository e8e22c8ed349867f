"""The reader against the safetensors library, and what it reads, holds and refuses."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_files import QWEN, qwen_tensors, random_tensor, write_checkpoint

from globe_stream.checkpoint import read_plan as ranges
from globe_stream.checkpoint import shards
from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.index import ExpertIndex, open_index
from globe_stream.checkpoint.reader import ExpertReader, read_expert
from globe_stream.errors import InputError

ROWS = [None, [0], [4, 1, 3], [0, 2, 4], [1, 2, 3], [4, 3, 2, 1, 0], [2, 2]]


def _stored(expert: ExpertMatrix) -> torch.Tensor:
    with safe_open(expert.storage.weight.path, "pt") as file:
        return file.get_tensor(expert.storage.weight.tensor).to(torch.float32)


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> ExpertIndex:
    tensors = qwen_tensors(dtype=request.param)
    return open_index(str(write_checkpoint(tmp_path, tensors, QWEN, shards=2)))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_agrees_with_the_library(
    index: ExpertIndex, batch: int, rows: Sequence[int] | None
) -> None:
    experts = index.experts["up"]
    with ExpertReader(experts, batch, rows=rows) as reader:
        seen = []
        for chunk in reader.batches():
            assert chunk.weights.dtype == torch.float32
            for position, weights in zip(chunk.positions, chunk.weights, strict=True):
                whole = _stored(experts[position])
                assert torch.equal(weights, whole if rows is None else whole[list(rows)])
            seen += chunk.positions
        assert sorted(seen) == list(range(len(experts)))


def test_order_is_that_of_the_bytes(index: ExpertIndex) -> None:
    experts = index.experts["gate"]
    with ExpertReader(experts, 4) as reader:
        order = [position for chunk in reader.batches() for position in chunk.positions]
    places = [(experts[i].storage.weight.path, experts[i].storage.weight.start) for i in order]
    assert places == sorted(places)
    assert len({path for path, _ in places}) == 2


def test_passes_repeat_and_resume_with_the_same_partition(index: ExpertIndex) -> None:
    with ExpertReader(index.experts["up"], 4) as reader:
        first = [(c.positions, c.weights.clone()) for c in reader.batches()]
        again = [(c.positions, c.weights.clone()) for c in reader.batches(skip=1)]
    assert [len(positions) for positions, _ in first] == [4, 2]
    assert [positions for positions, _ in again] == [positions for positions, _ in first[1:]]
    assert torch.equal(again[0][1], first[1][1])
    with ExpertReader(index.experts["up"], 4) as fresh:
        assert [c.positions for c in fresh.batches(skip=2)] == []
        assert fresh.bytes_read == 0


def test_weights_are_views_of_one_buffer(index: ExpertIndex) -> None:
    with ExpertReader(index.experts["up"], 2) as reader:
        assert len({chunk.weights.data_ptr() for chunk in reader.batches()}) == 1


def test_a_pass_left_early_can_be_started_again(index: ExpertIndex) -> None:
    with ExpertReader(index.experts["up"], 1) as reader:
        for chunk in reader.batches():
            first = chunk.weights.clone()
            break
        assert torch.equal(next(reader.batches()).weights, first)


def test_bytes_and_calls(tmp_path: Path, reads: Callable[[], int]) -> None:
    config = QWEN | {"moe_intermediate_size": 6, "hidden_size": 4096}
    tensors = qwen_tensors(p=6, d=4096, dtype=torch.float16)
    index = open_index(str(write_checkpoint(tmp_path, tensors, config)))
    experts = index.experts["up"]
    line = 4096 * 2
    for rows, lines, calls in ((None, 6, 1), ([1, 2, 5], 3, 2), ([5, 1, 3], 3, 3), ([0, 0], 1, 1)):
        with ExpertReader(experts, 2, rows=rows) as reader:
            list(reader.batches())
            assert reader.bytes_read == len(experts) * lines * line
            assert reads() == len(experts) * calls


def test_gaps_below_a_page_are_read_along(tmp_path: Path, reads: Callable[[], int]) -> None:
    tensors = qwen_tensors(p=6, d=512, dtype=torch.float32)  # 2 KiB a row
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))
    with ExpertReader(index.experts["up"], 2, rows=[0, 2, 5]) as reader:
        list(reader.batches())
        assert reads() == 6 * 2  # rows 0 to 2, and row 5: two rows are a page
        assert reader.bytes_read == 6 * 4 * 2048
    assert ranges.PAGE == 4096


def test_the_next_batch_is_read_meanwhile(
    index: ExpertIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()
    original = shards.ShardFiles.read_into

    def read_into(self, path, start, buffer):
        if threading.current_thread() is not threading.main_thread():
            reading.set()
        original(self, path, start, buffer)

    monkeypatch.setattr(shards.ShardFiles, "read_into", read_into)
    with ExpertReader(index.experts["up"], 2) as reader:
        batches = reader.batches()
        next(batches)
        reading.clear()
        next(batches)
        assert reading.wait(5), "batch 3 is read while batch 2 is in use"


def test_errors_of_the_thread_reach_the_consumer(index: ExpertIndex) -> None:
    path = index.files[-1]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with (
        ExpertReader(index.experts["up"] + index.experts["gate"], 3) as reader,
        pytest.raises(InputError, match=r"is truncated: .* bytes expected .* present"),
    ):
        list(reader.batches())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_expert_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    tensors = qwen_tensors()
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"][3, 4] = value
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))
    with (
        ExpertReader(index.experts["up"], 2) as reader,
        pytest.raises(InputError, match=r"experts.2.up_proj.weight: up of layer 1, expert 2 has 1"),
    ):
        list(reader.batches())
    with ExpertReader(index.experts["up"], 2, rows=[0, 1]) as reader:
        assert len(list(reader.batches())) == 3


def test_large_finite_values_are_no_error(tmp_path: Path) -> None:
    tensors = qwen_tensors()
    tensors["model.layers.0.mlp.experts.0.up_proj.weight"].fill_(3e38)
    index = open_index(str(write_checkpoint(tmp_path, tensors, QWEN)))
    assert bool((read_expert(index.experts["up"][0]) == torch.tensor(3e38)).all())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", [None, [0, 2, 4], [3, 0, 1]])
def test_buffer_bytes_are_those_allocated(
    index: ExpertIndex, batch: int, rows: list[int] | None
) -> None:
    experts = index.experts["up"]
    with ExpertReader(experts, batch, rows=rows) as reader:
        next(reader.batches())
        slots, weights, _ = reader._buffers
        raw = slots.to_decode()
        allocated = raw.nbytes + weights.nbytes
    priced = ExpertReader.buffer_bytes(experts[0], batch, rows)
    scratch = 3 * 8 * raw.shape[1] if rows == [3, 0, 1] else 0
    assert allocated <= priced <= allocated + scratch
    if rows is not None:
        assert priced <= ExpertReader.buffer_bytes(experts[0], batch, len(rows))


def test_shapes_must_agree(index: ExpertIndex) -> None:
    with pytest.raises(ValueError, match="shapes"):
        ExpertReader([index.experts["up"][0], index.experts["down"][0]], 1)
    with pytest.raises(ValueError, match="at least one"):
        ExpertReader([], 1)


def test_more_shards_than_may_be_open(tmp_path: Path) -> None:
    config = QWEN | {"num_hidden_layers": 6}
    tensors = qwen_tensors(layers=6)
    index = open_index(str(write_checkpoint(tmp_path, tensors, config, shards=len(tensors))))
    experts = index.experts["up"]
    with ExpertReader(experts, 5) as reader:
        for chunk in reader.batches():
            for position, weights in zip(chunk.positions, chunk.weights, strict=True):
                assert torch.equal(weights, _stored(experts[position]))
        assert len(reader._files._open) <= shards._OPEN_FILES


def test_pages_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(shards.os, "posix_fadvise"):
        pytest.skip("no posix_fadvise here")
    index = open_index(str(write_checkpoint(tmp_path, qwen_tensors(), QWEN)))
    monkeypatch.setattr("globe_stream.checkpoint.reader.should_drop", lambda _: True)
    advised = []
    monkeypatch.setattr(shards.os, "posix_fadvise", lambda _, *rest: advised.append(rest))
    experts = index.experts["up"]
    with ExpertReader(experts, 2) as reader:
        list(reader.batches())
    dropped = [(a, a + n) for a, n, advice in advised if advice == shards.os.POSIX_FADV_DONTNEED]
    for expert in experts:
        start = expert.storage.weight.offset
        assert any(a <= start and b >= start + expert.nbytes for a, b in dropped)


def test_what_fits_the_page_cache_is_left_there() -> None:
    assert not shards.should_drop(2**20)
    assert shards.should_drop(2**60)


def test_random_tensor_differs() -> None:
    assert not torch.equal(random_tensor(4), random_tensor(4, seed=1))
