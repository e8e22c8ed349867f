"""What the engine records in a run: budget, peak, plans, the options of training, passes."""

from dataclasses import dataclass

from globe_stream.io.records import Json, Record
from globe_stream.memory.cost_model import StagePlan

BUDGET, MACHINE, MEMORY, TRAINING = "budget", "machine", "memory", "train_config"
"""Keys of the states that belong to a run as a whole."""


@dataclass(frozen=True)
class Budget(Record):
    """The memory budget of the last command, in bytes."""

    bytes: int


@dataclass(frozen=True)
class PeakMemory(Record):
    """The highest memory of any command so far, in bytes."""

    bytes: int


@dataclass(frozen=True)
class PlansRecord(Record):
    """The stages' plans that were made for `processes` with a budget of `limit` bytes each."""

    limit: int
    stages: dict[str, StagePlan]
    processes: int = 1


@dataclass(frozen=True)
class TrainingOptions(Record):
    """The options of training that decide what it computes, by name."""

    options: Json


@dataclass(frozen=True)
class PassCost(Record):
    """What a pass cost, interrupted attempts included.

    `waiting` is the part of `seconds` spent waiting for the disk.
    """

    bytes_read: int
    seconds: float
    waiting: float

    def metrics(self) -> dict[str, float]:
        """By their published names."""
        return {
            "io/bytes_read": self.bytes_read,
            "time/seconds": self.seconds,
            "io/bytes_per_second": self.bytes_read / max(self.seconds, 1e-9),
            "io/seconds_waiting": self.waiting,
        }


@dataclass(frozen=True)
class PartialPass(Record):
    """A pass in progress: each process has done `batches` of `batch` experts.

    `scalars` are those of every process's accumulator, by rank.
    """

    stage: str
    batch: int
    batches: int
    scalars: tuple[dict[str, int | float], ...]
    cost: PassCost
