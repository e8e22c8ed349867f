"""What every command that computes prepares in the same order: device, precision, memory, run.

A command opens a session on a device, checks its input, lets the session set up the arithmetic
and measure the program itself, plans its stages within the memory that is left, and then works on
a run within `Session.working_on`, which handles signals, metrics and full disks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch

from globe_stream.commands.tracking import open_trackers, pictures, tracker_config
from globe_stream.config import RuntimeConfig
from globe_stream.config.options import Options
from globe_stream.engine import device as devices
from globe_stream.engine.context import Context
from globe_stream.engine.metrics import Metrics, MetricsFile, Sink
from globe_stream.engine.progress import Progress
from globe_stream.engine.records import (
    BUDGET,
    MACHINE,
    MEMORY,
    Budget,
    PeakMemory,
    PlansRecord,
)
from globe_stream.engine.signals import graceful_interrupts
from globe_stream.errors import InputError, option
from globe_stream.formatting import format_bytes, parse_size
from globe_stream.io.records import Record
from globe_stream.io.system_errors import explained
from globe_stream.io.world import ALONE, World
from globe_stream.memory import allocator, planner
from globe_stream.memory.base import warm_up
from globe_stream.memory.cost_model import StagePlan
from globe_stream.memory.device_memory import cap, device_limit, explained_refusals, within
from globe_stream.memory.meter import Meter
from globe_stream.memory.planner import Stage
from globe_stream.store.run import Run

ANSWER = "saving the state of this pass, then stopping"
"""What is said to a signal."""
SHARE = 0.6
"""Share of the machine's memory that is the budget when none is given."""

Plans = dict[str, StagePlan]
"""The plan of each stage of one group of experts, by the stage's name."""


@dataclass(frozen=True)
class Resources:
    """How the device computes, the memory budget, and what the program itself takes, in bytes.

    `device_bytes` are those that a GPU's own budget leaves to arrays, where it is the tighter one:
    `limit` then follows from it.
    """

    machine: devices.Machine
    limit: int
    base: int
    device_bytes: int | None = None

    def on_device(self, device_bytes: int | None) -> "Resources":
        """These, on a GPU that may hold `device_bytes`; None where there is no such budget."""
        limit = within(self.limit, self.base, device_bytes)
        if limit == self.limit:
            return self
        return replace(self, limit=limit, device_bytes=device_bytes)

    def require(self, stages: Iterable[Stage]) -> None:
        """Raise InputError unless all of `stages` fit; see `planner.require`."""
        planner.require(stages, self.limit, self.base, self.device_bytes)


@dataclass(frozen=True)
class Session:
    """The device that one command computes on, and its settings."""

    runtime: RuntimeConfig
    device: torch.device
    reason: str
    silent: bool = False
    world: World = ALONE

    @classmethod
    def open(
        cls, runtime: RuntimeConfig, *, silent: bool = False, world: World = ALONE
    ) -> "Session":
        """Choose the device; InputError when the one asked for cannot be used.

        Of several processes, the leading one alone prints.
        """
        allocator.return_freed_memory()
        chosen = devices.choose_device(runtime.device)
        several = world.size > 1
        if several and chosen[0].type == "cuda" and world.local_size > torch.cuda.device_count():
            raise InputError(
                f"{option('device')} cuda: {world.local_size} processes on this machine share "
                f"{torch.cuda.device_count()} GPUs. Start one for each, "
                f"or use {option('device')} cpu"
            )
        if several and chosen[0].type == "mps":
            raise InputError(
                f"{option('device')} mps: one process alone can use it. "
                f"Use {option('device')} cpu, or give the command without torchrun"
            )
        return cls(runtime, *chosen, silent or not world.leads, world)

    def resources(self, run: Run | None = None) -> Resources:
        """Set up the arithmetic as `run` recorded it, and measure the program once it is loaded."""
        machine = devices.prepare(
            self.device,
            self.reason,
            self.runtime.precision,
            run.state(MACHINE, devices.Machine) if run else None,
            self.world.size,
        )
        warm_up(self.device)
        allocator.trim()
        limit = min(self.world.gather(memory_limit(self.runtime, run, self.world.local_size)))
        base = max(self.world.gather(Meter().now()))
        own = self.world.gather(device_limit(self.device, self.runtime.device_memory))
        least = min((one for one in own if one is not None), default=None)
        return Resources(machine, limit, base).on_device(least)

    def require_free(self, resources: Resources, plans: Iterable[StagePlan]) -> None:
        """Raise InputError when the machine has too little memory free for one of `plans`.

        Only where no budget was given: one that was is for the user to judge.
        """
        greatest = max(plans, key=lambda plan: plan.estimate_bytes)
        free = min(self.world.gather(psutil.virtual_memory().available)) + resources.base
        needed = resources.base + self.world.local_size * greatest.estimate_bytes
        if self.runtime.memory is None and needed > free:
            raise InputError(
                f"{option('memory')}: not given, so {greatest.stage} may take "
                f"{format_bytes(needed)} of the {format_bytes(resources.limit)} that are "
                f"{SHARE:.0%} of this machine's memory, and {format_bytes(free)} are free. Close "
                f"other programs, or give {option('memory')}, with which last bits may differ"
            )

    @contextmanager
    def working_on(
        self,
        run: Run,
        resources: Resources,
        *,
        sinks: Sequence[Sink] = (),
        checkpoint_seconds: float,
    ) -> Iterator[Context]:
        """What the stages of a command share while they work on `run`; metrics go to `sinks`.

        A signal ends the work after the batch at hand; a full disk is an InputError.
        """
        metrics, meter = Metrics(sinks), Meter()
        run.beside = lambda: _peak_state(run, meter)
        try:
            with (
                graceful_interrupts(
                    ANSWER, silent=not self.world.leads, patient=self.world.size > 1
                ) as interrupt,
                explained(run.path, "writing the run"),
                explained_refusals(self.device),
            ):
                cap(self.device, resources.limit - resources.base)
                yield Context(
                    run,
                    metrics,
                    Progress(silent=self.silent),
                    meter,
                    interrupt,
                    self.device,
                    checkpoint_seconds,
                    resources.limit,
                    resources.base,
                    resources.machine.precision,
                    self.world,
                )
        finally:
            metrics.close()

    @contextmanager
    def recording(
        self, run: Run, resources: Resources, options: Mapping[str, Options]
    ) -> Iterator[Context]:
        """`working_on` for a run that is kept: machine, metrics and peaks are recorded in it.

        Trackers record the command's `options` by section, and shown the pictures at the end.
        """
        machine, before = (
            self.world.of_first(resources.machine),
            run.state(MACHINE, devices.Machine),
        )
        if before != machine:
            run.commit({MACHINE: machine})
        config = tracker_config(run, machine, self.runtime, options)
        trackers = open_trackers(run, self.runtime, config) if self.world.leads else []
        file = [MetricsFile(run.path / "metrics.jsonl")] if self.world.leads else []
        sinks = [*file, *trackers]
        seconds = 60 * self.runtime.checkpoint_every
        with self.working_on(run, resources, sinks=sinks, checkpoint_seconds=seconds) as context:
            if before is not None and before.processes != machine.processes:
                context.progress.say(
                    f"{run.path}: worked on by {before.processes} processes before, now by "
                    f"{machine.processes}: results agree within rounding, not byte for byte"
                )
            yield context
            _finish(context)
            shown = pictures(run.path) if trackers else {}
            for tracker in trackers:
                tracker.show(shown)


def memory_limit(runtime: RuntimeConfig, run: Run | None, processes: int = 1) -> int:
    """The budget of each of the machine's `processes` in bytes.

    As given, else the run's own, else a share of the machine's memory: not of what is free, since
    the budget chooses the batches, and these decide last bits.
    """
    if runtime.memory is not None:
        return parse_size(runtime.memory)
    recorded = run.state(BUDGET, Budget) if run is not None else None
    if recorded is not None:
        return recorded.bytes
    return int(SHARE * psutil.virtual_memory().total / processes)


def recorded_plans(run: Run, key: str, plans: Plans, limit: int) -> Plans:
    """The plans that were recorded under `key` for the same budget, else `plans`, now recorded.

    The base is measured anew in every process; without this a resumed run might choose another
    batch and differ in the last bits.
    """
    recorded = run.state(key, PlansRecord)
    size = run.world.size
    if recorded is not None and (recorded.limit, recorded.processes) == (limit, size):
        return recorded.stages
    record = run.world.of_first(PlansRecord(limit, plans, size))
    run.commit({key: record, BUDGET: Budget(limit)})
    return record.stages


def _peak_state(run: Run, meter: Meter) -> dict[str, Record]:
    """The highest peak of this command and those before it, for every commit to record."""
    before = run.state(MEMORY, PeakMemory) or PeakMemory(0)
    return {MEMORY: PeakMemory(max(before.bytes, meter.peak))}


def _finish(context: Context) -> None:
    """Record the peak and print it beside what was estimated, and delete what was spilled."""
    run, meter = context.run, context.meter
    run.clear_spill()
    if not meter.peaks:
        return
    run.commit({})
    for stage in meter.peaks:
        values = context.memory_values(stage)
        context.progress.say(
            f"memory of {stage}: priced {format_bytes(values['memory/price_bytes'])}, "
            f"peak {format_bytes(values['memory/peak_bytes'])}"
        )
