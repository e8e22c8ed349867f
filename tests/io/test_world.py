"""What processes tell one another, against sums taken in one process."""

import sys
from pathlib import Path

import jobs
import pytest
import torch

from globe_stream.io import world as worlds
from globe_stream.io.world import ALONE, even_parts

SIZE, COUNT, ROWS = 3, 1001, 7


def values_of(rank, shape, dtype):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(*shape, generator=generator).mul(100).to(dtype)


def in_order(shape, dtype):
    total = values_of(0, shape, dtype)
    for rank in range(1, SIZE):
        total += values_of(rank, shape, dtype)
    return total


def talk(folder):
    """Everything that a world can do, in one of its processes; what is wrong is an exit code."""
    worlds.PIECE_BYTES = 1024  # several pieces, the last a short one
    from globe_stream.engine.distributed import join

    torch.set_num_threads(1)
    world = join()
    assert world.gather(world.rank) == [0, 1, 2]
    assert world.of_first(f"of {world.rank}") == "of 0"
    assert world.totals([1, world.rank]) == [SIZE, 3]
    for dtype in (torch.float32, torch.float64):
        for shape in ((COUNT,), (ROWS, 5, 3), (2,)):
            found = values_of(world.rank, shape, dtype)
            world.add_(found)
            assert torch.equal(found, in_order(shape, dtype))
    bounds = even_parts(ROWS, SIZE)
    first, last = bounds[world.rank]
    found = values_of(world.rank, (ROWS, 4), torch.float32)
    world.reduce_parts_(found, bounds)
    assert torch.equal(found[first:last], in_order((ROWS, 4), torch.float32)[first:last])
    world.share_parts_(found, bounds)
    assert torch.equal(found, in_order((ROWS, 4), torch.float32))
    mine = list(range(world.rank, COUNT, SIZE))
    filled = torch.full((COUNT,), torch.nan)
    filled[mine] = torch.arange(COUNT).float()[mine]
    world.fill_(filled, mine)
    assert torch.equal(filled, torch.arange(COUNT).float())
    sent = torch.arange(SIZE * 2).add(10 * world.rank).to(torch.bfloat16)
    parts = world.exchange(sent, [2] * SIZE, [(1, 2)] * SIZE)
    own = 2 * world.rank
    assert [part.tolist() for part in parts] == [
        [[own + 10 * r, own + 1 + 10 * r]] for r in (0, 1, 2)
    ]
    (folder / str(world.rank)).touch()
    sys.exit(0)


@pytest.mark.slow
def test_three_processes_agree_with_sums_in_their_order(tmp_path):
    codes = jobs.codes_of(SIZE, talk, lambda _: (Path(tmp_path),))
    assert codes == [0] * SIZE
    assert len(list(tmp_path.iterdir())) == SIZE


def test_a_world_of_one_changes_nothing():
    values = torch.tensor([[1.0, torch.nan]])
    for change in (
        lambda: ALONE.add_(values),
        lambda: ALONE.fill_(values, [0]),
        lambda: ALONE.broadcast_(values),
        lambda: ALONE.reduce_parts_(values, [(0, 1)]),
        lambda: ALONE.share_parts_(values, [(0, 1)]),
        ALONE.meet,
    ):
        change()
        assert torch.equal(values.nan_to_num(7), torch.tensor([[1.0, 7.0]]))
    assert (ALONE.gather(4), ALONE.of_first(5), ALONE.totals([6])) == ([4], 5, [6])


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 5), (0, 2), (9, 1)])
def test_even_parts_cover_everything_once_and_differ_by_one(count, size):
    parts = even_parts(count, size)
    assert [k for first, last in parts for k in range(first, last)] == list(range(count))
    lengths = [last - first for first, last in parts]
    assert len(parts) == size
    assert max(lengths) - min(lengths) <= 1
