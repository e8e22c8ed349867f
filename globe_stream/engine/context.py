"""What every stage of a run needs besides its own mathematics."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.engine.metrics import MACHINE_STAGE, Metrics
from globe_stream.engine.progress import Progress
from globe_stream.engine.rates import TYPICAL, measured_rates
from globe_stream.engine.signals import Interrupt
from globe_stream.io.world import ALONE, World
from globe_stream.kernels.coarse import Precision
from globe_stream.kernels.dense_solvers import FALLBACKS
from globe_stream.memory import allocator
from globe_stream.memory.device_memory import release_cached
from globe_stream.memory.meter import Meter
from globe_stream.memory.operations import Work
from globe_stream.store.run import Run


@dataclass
class Context:
    """The run, its instruments and its limits."""

    run: Run
    metrics: Metrics
    progress: Progress
    meter: Meter
    interrupt: Interrupt
    device: torch.device
    checkpoint_seconds: float
    budget: int
    base: int
    precision: Precision = "float32"
    world: World = ALONE
    estimates: dict[str, int] = field(default_factory=dict)
    works: Mapping[str, Work] = field(default_factory=dict)
    """What every step of the command computes, by its title, where that is known."""
    unmeasured: Sequence[ExpertMatrix] = ()
    """Experts to measure the disk with when the first stage begins."""

    def expect(self, works: Mapping[str, Work], experts: Sequence[ExpertMatrix]) -> None:
        """The steps to come by their titles, in order; `experts` are some that they read."""
        self.works, self.unmeasured = works, experts
        self.progress.outlook.expect({name: TYPICAL.seconds(work) for name, work in works.items()})

    def computed(self, title: str, seconds: float) -> dict[str, float]:
        """The metric values of a step that took `seconds`, if it is known what it computes."""
        if title not in self.works:
            return {}
        operations = self.works[title].operations
        return {
            "compute/operations": operations,
            "compute/operations_per_second": operations / max(seconds, 1e-9),
        }

    @contextmanager
    def stage(self, name: str, estimate_bytes: int) -> Iterator[None]:
        """Measure the peak memory of a stage beside its price in bytes."""
        self.estimates[name] = max(self.estimates.get(name, 0), estimate_bytes)
        self._log_machine()
        allocator.trim()
        release_cached(self.device)
        with self.meter.stage(name):
            yield

    def _log_machine(self) -> None:
        """Log what the machine reaches a second, once a command; rates decide nothing."""
        if self.unmeasured and self.world.leads:
            rates = measured_rates(self.device, self.unmeasured)
            self.metrics.log(MACHINE_STAGE, "", rates.metrics())
        self.unmeasured = ()

    def memory_values(self, name: str) -> dict[str, float]:
        """The metric values of a stage measured by `stage`: its peak and base plus price.

        Beside them, how often the device left a dense solver to the CPU so far.
        """
        peak, estimate_bytes = self.meter.peaks[name], self.base + self.estimates[name]
        return {
            "memory/peak_bytes": peak,
            "memory/price_bytes": estimate_bytes,
            "memory/peak_over_price": peak / estimate_bytes,
            **FALLBACKS.metrics(self.device),
        }


class Clock:
    """Says when the next checkpoint is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether `seconds` have gone since the last time this was true."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
