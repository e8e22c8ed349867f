"""One resumable pass over the experts of a group.

The reader hands out batches in file order; an accumulator takes each in turn. Between two
batches, when a checkpoint is due or somebody asked to stop, the accumulator's state is committed
with the number of batches done. Resuming restores it and skips those batches, so the result is
bit for bit that of an undisturbed pass. Source: docs/design.md, section Run directory.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import Batch, ExpertReader
from globe_stream.engine.context import Clock, Context
from globe_stream.engine.records import PartialPass, PassCost
from globe_stream.errors import Interrupted
from globe_stream.io.records import Scalars
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


def stream(context: Context, task: Pass, accumulator: Accumulator) -> PassCost:
    """Feed every expert of `task` to `accumulator` and return the cost.

    The caller commits the result together with `finished(task)`, which clears the partial
    state. Raises Interrupted, after a checkpoint, when a stop was requested, and InputError for an
    expert whose stored bytes changed since the group's first pass; a pass over some rows only
    cannot tell.
    """
    skip, before = _resume(context, task, accumulator)
    clock, start = Clock(context.checkpoint_seconds), time.monotonic()
    title = f"{task.group} {task.stage}"
    with ExpertReader(
        task.experts,
        task.batch,
        rows=task.rows,
        device=context.device,
        expected=_expected(context, task),
    ) as reader:

        def cost() -> PassCost:
            return PassCost(
                before.bytes_read + reader.bytes_read,
                before.seconds + time.monotonic() - start,
                before.waiting + reader.seconds_waiting,
            )

        bar = context.progress.bar(title, len(task.experts), skip * task.batch)
        for done, batch in enumerate(reader.batches(skip), start=skip + 1):
            note = accumulator.update(batch)
            bar.advance(len(batch.positions), note, context.meter.now())
            last = done * task.batch >= len(task.experts)
            if context.interrupt.requested or (clock.due() and not last):
                _checkpoint(context, task, accumulator, done, cost())
            if context.interrupt.requested:
                bar.close()
                raise Interrupted(
                    f"{title}: stopped after {done * task.batch} of {len(task.experts)} experts; "
                    "the same command continues"
                )
        bar.close()
        return cost()


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
    if state is None or (state.stage, state.batch) != (task.stage, task.batch):
        return 0, PassCost(0, 0.0, 0.0)
    accumulator.restore(
        lambda name: context.run.array(f"{task.partial_group}/{name}"), state.scalars
    )
    context.progress.say(
        f"{task.group} {task.stage}: continuing after "
        f"{state.batches * task.batch} of {len(task.experts)} experts"
    )
    return state.batches, state.cost


def _checkpoint(
    context: Context, task: Pass, accumulator: Accumulator, done: int, cost: PassCost
) -> None:
    context.run.commit(
        {
            task.partial_key: PartialPass(
                task.stage, task.batch, done, dict(accumulator.scalars()), cost
            )
        },
        {f"{task.partial_group}/{name}": source for name, source in accumulator.arrays().items()},
    )
