"""One resumable pass over the experts of a group.

The reader hands out batches in file order; an accumulator takes each in turn. Between two
batches, when a checkpoint is due or somebody asked to stop, the accumulator's state is committed
with the number of batches done. Resuming restores it and skips those batches, so the result is
bit for bit that of an undisturbed pass. Source: docs/design.md, section Run directory.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from globe_stream.checkpoint.dealing import deal
from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import Batch, ExpertReader
from globe_stream.engine.context import Clock, Context
from globe_stream.engine.records import PartialPass, PassCost
from globe_stream.errors import Interrupted
from globe_stream.io.records import Scalars
from globe_stream.io.world import World
from globe_stream.store import arrays, digests
from globe_stream.store.arrays import Loader


class Accumulator(Protocol):
    """What a pass gathers; everything it needs to continue is in `arrays` and `scalars`."""

    def update(self, batch: Batch) -> str:
        """Take one batch; returns a short note for the progress line."""

    def arrays(self) -> Mapping[str, arrays.Storable]:
        """The arrays gathered so far, by name."""

    def scalars(self) -> Scalars:
        """The plain numbers gathered so far."""

    def restore(self, load: Loader, scalars: Scalars) -> None:
        """Return to the state that `arrays` and `scalars` described."""

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        """After the pass: what all processes gathered, each from its experts at `positions`."""


@dataclass(frozen=True)
class Pass:
    """A pass over `experts` for one stage of one group."""

    group: str
    stage: str
    experts: Sequence[ExpertMatrix]
    batch: int
    rows: Sequence[int] | None = None

    @property
    def partial_key(self) -> str:
        """Under which a pass in progress is recorded."""
        return f"{self.group}:partial"

    @property
    def partial_group(self) -> str:
        """Where its arrays are kept."""
        return f"{self.group}/partial"

    def partial_array(self, name: str, rank: int) -> str:
        """Where process `rank` keeps the array `name` of its accumulator."""
        return f"{self.partial_group}/{f'rank-{rank:03d}/' if rank else ''}{name}"


def stream(context: Context, task: Pass, accumulator: Accumulator) -> PassCost:
    """Feed every expert of `task` to `accumulator` and return the cost.

    Of several processes, each reads its share, batch by batch in step with the others; then what
    they gathered is put together. The caller commits the result together with `finished(task)`,
    which clears the partial state. Raises Interrupted, after a checkpoint, when a stop was
    requested, and InputError for an expert whose stored bytes changed since the group's first
    pass; a pass over some rows only cannot tell.
    """
    world = context.world
    shares = deal(task.experts, world.size)
    skip, before = _resume(context, task, accumulator)
    start = time.monotonic()
    reader = ExpertReader(
        task.experts,
        task.batch,
        rows=task.rows,
        device=context.device,
        expected=_expected(context, task),
        positions=shares[world.rank],
    )

    def cost() -> PassCost:
        (read,) = world.totals([reader.bytes_read])
        return PassCost(
            before.bytes_read + read,
            before.seconds + time.monotonic() - start,
            before.waiting + reader.seconds_waiting,
        )

    with reader:
        _feed(context, task, accumulator, reader.batches(skip), cost, skip, shares)
    if world.size > 1:
        accumulator.reduce(world, shares[world.rank])
    return cost()


def _feed(
    context: Context,
    task: Pass,
    accumulator: Accumulator,
    batches: Iterator[Batch],
    cost: Callable[[], PassCost],
    skip: int,
    shares: Sequence[Sequence[int]],
) -> None:
    """Hand `batches` to `accumulator`, in step with other processes, and save it when due."""
    title, clock = f"{task.group} {task.stage}", Clock(context.checkpoint_seconds)
    seen = sum(len(share[: skip * task.batch]) for share in shares)
    steps = max(math.ceil(len(share) / task.batch) for share in shares)
    bar = context.progress.bar(title, len(task.experts), seen)
    for done in range(skip + 1, steps + 1):
        batch = next(batches, None)
        note = "" if batch is None else accumulator.update(batch)
        due = context.world.leads and done < steps and clock.due()
        counts = (len(batch.positions) if batch else 0, context.interrupt.requested, due)
        count, stops, saves = context.world.totals(counts)
        seen += count
        bar.advance(count, note, context.meter.now())
        if stops or saves:
            _checkpoint(context, task, accumulator, done, cost())
        if stops:
            bar.close()
            raise Interrupted(
                f"{title}: stopped after {seen} of {len(task.experts)} experts; "
                "the same command continues"
            )
    bar.close()


def _expected(context: Context, task: Pass) -> Tensor | None:
    """The digests that the experts of `task` had in the group's first pass."""
    if task.rows is not None:
        return None
    return digests.recorded(context.run, task.group, [expert.member for expert in task.experts])


def finished(task: Pass) -> tuple[dict[str, None], list[str]]:
    """The states to clear and the arrays to drop when a pass's result is committed."""
    return {task.partial_key: None}, [task.partial_group]


def _resume(context: Context, task: Pass, accumulator: Accumulator) -> tuple[int, PassCost]:
    state = context.run.state(task.partial_key, PartialPass)
    world = context.world
    fits = state is not None and (state.stage, state.batch, len(state.scalars)) == (
        task.stage,
        task.batch,
        world.size,
    )
    if state is None or not fits:
        return 0, PassCost(0, 0.0, 0.0)
    accumulator.restore(
        lambda name: context.run.array(task.partial_array(name, world.rank)),
        state.scalars[world.rank],
    )
    done = min(state.batches * task.batch * world.size, len(task.experts))
    context.progress.say(
        f"{task.group} {task.stage}: continuing after {done} of {len(task.experts)} experts"
    )
    return state.batches, state.cost


def _checkpoint(
    context: Context, task: Pass, accumulator: Accumulator, done: int, cost: PassCost
) -> None:
    world = context.world
    scalars = tuple(world.gather(dict(accumulator.scalars())))
    context.run.commit(
        {task.partial_key: PartialPass(task.stage, task.batch, done, scalars, cost)},
        own={
            task.partial_array(name, world.rank): source
            for name, source in accumulator.arrays().items()
        },
    )
