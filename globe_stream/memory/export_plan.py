"""What an export needs in memory, and what it may keep resident within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.engine.device import warm_up
from globe_stream.errors import InputError, option
from globe_stream.factorization.groups import ExpertGroup, GroupSizes
from globe_stream.formatting import format_bytes
from globe_stream.io.safetensors_writer import PIECE_BYTES
from globe_stream.memory.cost_model import COMPILED_BYTES, SLACK_BYTES, fit_bytes, svd_work_bytes

_BATCHES = (8, 4, 2, 1)


@dataclass(frozen=True)
class ExportPlan:
    """How many banks stay in memory (none: atoms are read as needed), and the reader's batch.

    `price` is the peak expected, in bytes, the program itself and compiled kernels included; a
    budget must leave SLACK_BYTES besides.
    """

    resident: int
    batch: int
    estimate_bytes: int


def estimate_export(sizes: GroupSizes, reader: int, banks: int) -> int:
    """Bytes of an export above the base, for `banks` resident bytes of banks and a `reader`.

    One expert's fit (see `memory.budget.fit_bytes`) and two more (r, d) inside a curved
    activation; its adapter scaled (p, r); its gate-and-up block as stored (2 p, d), at most
    float32; one atom; the copy buffer twice; codes as supports.
    """
    r, p, d = sizes.rank, sizes.p, sizes.d
    one = fit_bytes(sizes) + 4 * (2 * r * d + p * r + 2 * p * d)
    return banks + reader + one + 4 * r * d + 2 * PIECE_BYTES + 8 * sizes.experts * sizes.bases


def estimate_svd(p: int, d: int, reader: int) -> int:
    """Bytes of replacing experts by their truncated SVD: its work and three (p, d) in float32."""
    return reader + svd_work_bytes(p, d) + 4 * 3 * p * d + 2 * PIECE_BYTES


def plan_export(groups: Sequence[ExpertGroup], memory: int | None) -> ExportPlan:
    """The largest choice that fits `memory` bytes, base included; None means no limit.

    Raises InputError when even one expert at a time does not fit.
    """
    base = measured_base()
    largest = max(groups, key=lambda group: group.sizes.bank_bytes).sizes.bank_bytes
    total = sum(group.sizes.bank_bytes for group in groups)
    choices = [(len(groups), total), (1, largest), (0, 0)]
    for resident, banks in choices:
        for batch in _BATCHES:
            estimate_bytes = (
                base
                + COMPILED_BYTES
                + max(_estimate_bytes(group, batch, banks) for group in groups)
            )
            if fits(estimate_bytes, memory):
                return ExportPlan(resident, batch, estimate_bytes)
    raise _too_little("export", memory, base, estimate_bytes)


def plan_svd(experts: Sequence[ExpertMatrix], memory: int | None) -> ExportPlan:
    """As `plan_export`, for the truncated SVD of `experts`."""
    base = measured_base()
    p, d = experts[0].shape
    for batch in _BATCHES:
        estimate_bytes = base + COMPILED_BYTES + estimate_svd(p, d, _reader_bytes(experts, batch))
        if fits(estimate_bytes, memory):
            return ExportPlan(0, batch, estimate_bytes)
    raise _too_little("the truncated SVD", memory, base, estimate_bytes)


def fits(estimate_bytes: int, memory: int | None) -> bool:
    """Whether a peak of `price` bytes leaves the slack of every stage; None means no limit."""
    return memory is None or estimate_bytes + SLACK_BYTES <= memory


def _too_little(what: str, memory: int | None, base: int, estimate_bytes: int) -> InputError:
    return InputError(
        f"{option('memory')} {format_bytes(memory or 0)}: {what} needs at least "
        f"{format_bytes(estimate_bytes + SLACK_BYTES)} ({format_bytes(base)} of it for the "
        f"program itself). Raise {option('memory')}"
    )


def measured_base() -> int:
    """Resident bytes of the program once every library it needs has been used."""
    warm_up(torch.device("cpu"))
    return int(psutil.Process().memory_info().rss)


def _estimate_bytes(group: ExpertGroup, batch: int, banks: int) -> int:
    return estimate_export(group.sizes, _reader_bytes(group.experts, batch), banks)


def _reader_bytes(experts: Sequence[ExpertMatrix], batch: int) -> int:
    kinds = {expert.dtype: expert for expert in experts}
    return max(ExpertReader.buffer_bytes(expert, batch) for expert in kinds.values())
