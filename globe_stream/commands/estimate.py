"""What a run would cost, as `plan` says it."""

from dataclasses import dataclass

from globe_stream.engine.rates import Rates
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import GroupRecord
from globe_stream.io.records import Record
from globe_stream.memory.cost_model import StagePlan


@dataclass(frozen=True)
class GroupEstimate(GroupRecord):
    """A group, the rank of its SVD of equal size, and parameters kept, at most, over replaced."""

    svd_rank: int
    parameter_ratio: float

    @classmethod
    def of(cls, group: ExpertGroup) -> "GroupEstimate":
        """That of `group`, codes counted as dense."""
        sizes = group.sizes
        ratio = sizes.parameter_ratio(sizes.experts * sizes.bases)
        return cls(**vars(GroupRecord.of(group)), svd_rank=sizes.svd_rank, parameter_ratio=ratio)


@dataclass(frozen=True)
class StageEstimate(Record):
    """A stage's peak memory, the program itself included, and what was chosen for it."""

    stage: str
    memory_bytes: int
    batch: int
    spill: bool

    @classmethod
    def of(cls, name: str, plan: StagePlan, base: int) -> "StageEstimate":
        """Of the stage `name` with this plan, in a program that takes `base` bytes."""
        chosen = plan.batch_plan
        return cls(name, base + plan.estimate_bytes, chosen.batch, chosen.spill)


@dataclass(frozen=True)
class RunEstimate(Record):
    """A run's memory, bytes read, operations, seconds at `rates`, and disk; groups and stages.

    Memory is that of each of `processes`; so are the bytes that an epoch moves for spilled banks.
    Operations and seconds are those of seeding, of the first epoch, of one after the warm-up, and
    of the whole.
    """

    format: int
    model: str
    processes: int
    device: str
    memory_budget_bytes: int
    base_bytes: int
    least_memory_bytes: int
    peak_memory_bytes: int
    seed_bytes_read: int
    epoch_bytes_read: int
    bytes_read: int
    passes: int
    spilled_epoch_bytes: int
    seed_flops: float
    warmup_epoch_flops: float
    epoch_flops: float
    flops: float
    rates: Rates
    seed_seconds: float
    warmup_epoch_seconds: float
    epoch_seconds: float
    seconds: float
    disk_bytes: int
    disk_free_bytes: int
    units: dict[str, GroupEstimate]
    stages: tuple[StageEstimate, ...]
