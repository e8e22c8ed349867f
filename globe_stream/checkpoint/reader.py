"""Experts from shards to float32 tensors, batch by batch, in the order of their bytes.

One thread reads the stored bytes of the next batch while the consumer works on the current one; a
pass of one batch needs none. Resident: one batch as stored and one batch in float32, both allocated
once. Time: one positioned read for each joined byte range, one conversion for each expert.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from globe_stream.checkpoint.dequantize import (
    Scales,
    decode,
    decode_scratch_bytes,
    scale_values,
)
from globe_stream.checkpoint.digests import digest_of, require_same
from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.read_plan import ReadPlan, bound_bytes, plan_read
from globe_stream.checkpoint.shards import ShardFiles, should_drop
from globe_stream.checkpoint.slots import CudaSlots, Slots
from globe_stream.checkpoint.strided import StridedMatrix
from globe_stream.errors import InputError
from globe_stream.io.closing import Closing

_ALIGNMENT = 64

Rows = Sequence[int] | None
_Read = tuple[list[int], Tensor | None]
"""Slots of the experts of a batch, and their digests."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some experts: `weights` (b, rows, d) float32 of those at `positions` in the reader's list.

    `weights` is a view of a buffer that the next batch overwrites. `digests` (b, 16) uint8 are of
    the stored bytes of whole experts, scales included; None where only some rows were read.
    """

    positions: list[int]
    weights: Tensor
    digests: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor's bytes of one expert: read by `plan` to `offset` in the expert's slot."""

    region: StridedMatrix
    plan: ReadPlan
    offset: int

    @property
    def key(self) -> tuple[Path, int, tuple[tuple[int, int], ...]]:
        return (self.region.path, self.region.start, self.plan.ranges)

    def of(self, slot: Tensor) -> Tensor:
        return self.plan.select(slot[self.offset : self.offset + self.plan.nbytes])


class ExpertReader(Closing):
    """Reads `experts`, all of one shape, `batch` at a time, all rows or only `rows` of each.

    With `positions`, only the experts there are read. The order is that of the bytes in the files,
    and the partition into batches depends on (experts, positions, batch) alone. Neighbours in that
    order that share a block, such as gate and up of an interleaved tensor, share one read.
    `seconds_waiting` is the time spent waiting for the disk.
    `expected` (N, 16) uint8 are the digests that the experts must have; a reader of some rows sees
    no whole expert and cannot compare them.
    Raises InputError, from `batches`, for a shard that became shorter, for an expert with NaN or
    Inf among the elements read, and for one whose stored bytes are not those expected.
    """

    def __init__(
        self,
        experts: Sequence[ExpertMatrix],
        batch: int,
        *,
        rows: Rows = None,
        device: str | torch.device = "cpu",
        expected: Tensor | None = None,
        positions: Sequence[int] | None = None,
    ) -> None:
        if batch < 1 or not experts:
            raise ValueError("at least one expert and a batch of at least one are needed")
        if len({expert.shape for expert in experts}) > 1:
            raise ValueError("experts of different shapes cannot share a batch")
        self._experts = list(experts)
        chosen = range(len(experts)) if positions is None else positions
        self._order = sorted(chosen, key=lambda i: file_order(experts[i]))
        self._batch = max(1, min(batch, len(self._order)))
        self._rows = None if rows is None else [int(row) for row in rows]
        self._device = torch.device(device)
        self._expected = expected
        self._files = ShardFiles(should_drop(sum(experts[i].nbytes for i in self._order)))
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[_Read] | None = None
        self._buffers: tuple[Slots, Tensor, Tensor | None] | None = None
        self._last: tuple[object, int] = (None, -1)
        self.seconds_waiting = 0.0

    @property
    def bytes_read(self) -> int:
        """Bytes read from the files so far, prefetched ones included."""
        return self._files.bytes_read

    @property
    def batch_count(self) -> int:
        """Number of batches in one pass."""
        return -(-len(self._order) // self._batch)

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """One pass; the first `skip` batches are left out without being read."""
        self._settle()
        slots, weights, staging = self._allocate()
        self._last = (None, -1)
        numbers = range(skip, self.batch_count)
        try:
            if len(numbers) > 1:
                self._begin(numbers[0], slots)
            for number in numbers:
                taken, digests = self._taken(number, slots)
                positions, raw = self._positions(number), slots.to_decode()
                for i, (position, slot) in enumerate(zip(positions, taken, strict=True)):
                    self._decode(self._experts[position], raw[slot], weights[i], staging)
                slots.decoded()
                if number + 1 < self.batch_count:
                    self._begin(number + 1, slots)
                filled = weights[: len(positions)]
                self._check_finite(positions, filled)
                yield Batch(positions, filled, digests)
        finally:
            self._settle()

    def close(self) -> None:
        """Stop the thread, close the files and give the buffers back."""
        self._settle()
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        self._files.close()
        if self._buffers is not None:
            self._buffers[0].close()
        self._buffers = None

    @staticmethod
    def buffer_bytes(expert: ExpertMatrix, batch: int, rows: int | Rows = None) -> int:
        """Bytes a reader of experts stored as `expert` is keeps resident at its peak.

        Exact for all rows and for a list of rows; for a number of rows it holds for any choice.
        The float32 batch and the stored batch, and the scratch of decoding one expert.
        """
        if isinstance(rows, int):
            regions = expert.storage.regions
            slot = sum(_align(bound_bytes(region, rows)) for region in regions)
            scratch, count = slot, rows
        else:
            parts = _parts(expert, rows)
            slot, scratch = _slot_bytes(parts), sum(part.plan.scratch_bytes for part in parts)
            count = expert.shape[0] if rows is None else len(rows)
        columns = expert.shape[1]
        scratch += decode_scratch_bytes(expert.dtype, count, columns, expert.storage.block)
        return batch * (slot + 4 * count * columns) + scratch

    def _allocate(self) -> tuple[Slots, Tensor, Tensor | None]:
        if self._buffers is None:
            size = max(_slot_bytes(self._parts(expert)) for expert in self._distinct())
            count = self._experts[0].shape[0] if self._rows is None else len(self._rows)
            shape = (count, self._experts[0].shape[1])
            weights = torch.empty((self._batch, *shape), device=self._device)
            staging = None
            if self._device.type != "cpu" and any(e.storage.scale for e in self._experts):
                staging = torch.empty(shape)
            if self._device.type == "cuda" and staging is None:
                slots: Slots = CudaSlots(self._batch, size, self._device)
            else:
                slots = Slots(self._batch, size)
            self._buffers = (slots, weights, staging)
        return self._buffers

    def _distinct(self) -> list[ExpertMatrix]:
        """One expert of every geometry."""
        seen = {}
        for expert in self._experts:
            regions = expert.storage.regions
            seen[tuple((r.dtype, r.minor, r.rows, r.columns) for r in regions)] = expert
        return list(seen.values())

    def _parts(self, expert: ExpertMatrix) -> list[_Part]:
        return _parts(expert, self._rows)

    def _positions(self, number: int) -> list[int]:
        return self._order[number * self._batch : (number + 1) * self._batch]

    def _read(self, number: int, into: Slots) -> _Read:
        """Read batch `number` into slots of `into`; the slot and the digest of each expert."""
        raw = into.to_fill(None if self._last[0] is None else self._last[1])
        slots: list[int] = []
        digests: list[Tensor] = []
        used: list[tuple[Path, int, int]] = []
        for position in self._positions(number):
            parts = self._parts(self._experts[position])
            key = [part.key for part in parts]
            if key != self._last[0]:
                slot = (self._last[1] + 1) % self._batch
                self._last = (None, slot)
                for part in parts:
                    used += self._read_part(part, raw[slot].numpy().data)
                self._last = (key, slot)
            slots.append(self._last[1])
            if self._rows is None:
                digests.append(self._digest(position, parts, raw[slots[-1]]))
        self._files.forget(used)
        into.filled()
        return slots, torch.stack(digests) if digests else None

    def _digest(self, position: int, parts: list[_Part], slot: Tensor) -> Tensor:
        """The digest of the whole expert at `position`, compared if one is expected."""
        digest = digest_of(part.of(slot) for part in parts)
        if self._expected is not None:
            require_same(self._experts[position], digest, self._expected[position])
        return digest

    def _read_part(self, part: _Part, slot: memoryview) -> list[tuple[Path, int, int]]:
        region, position = part.region, part.offset
        for start, length in part.plan.ranges:
            target = slot[position : position + length]
            self._files.read_into(region.path, region.start + start, target)
            position += length
        first, (last, length) = part.plan.ranges[0][0], part.plan.ranges[-1]
        return [(region.path, region.start + first, region.start + last + length)]

    def _decode(
        self, expert: ExpertMatrix, slot: Tensor, out: Tensor, staging: Tensor | None
    ) -> None:
        parts = self._parts(expert)
        stored = parts[0].of(slot)
        if len(parts) == 1:
            out.copy_(stored)
            return
        target = out if staging is None else staging
        decode(target, stored, expert.dtype, self._scales(expert, parts, slot))
        if staging is not None:
            out.copy_(staging)

    def _scales(self, expert: ExpertMatrix, parts: list[_Part], slot: Tensor) -> Scales:
        """The scales of the rows read, from their bytes in `slot`."""
        storage = expert.storage
        assert storage.scale is not None
        values = scale_values(parts[1].of(slot), storage.scale.dtype)
        if storage.factor is not None:
            factor = parts[2].of(slot)
            values = values / factor if storage.divides else values * factor
        count = expert.shape[0] if self._rows is None else len(self._rows)
        if storage.block[0] == 1:
            rows = torch.arange(count)
        else:
            chosen = torch.arange(count) if self._rows is None else torch.tensor(self._rows)
            rows = (chosen + storage.phase[0]) // storage.block[0]
        return Scales(values, rows, storage.block[1], storage.phase[1])

    def _check_finite(self, positions: list[int], weights: Tensor) -> None:
        """A sum is infinite or NaN if an element is; only then the elements are looked at."""
        if bool(weights.sum(dim=2).isfinite().all()):
            return
        for position, matrix in zip(positions, weights, strict=True):
            bad = int((~matrix.isfinite()).sum())
            if bad:
                expert = self._experts[position]
                raise InputError(
                    f"{expert.where}: {expert.name} has {bad:,} elements that are NaN or Inf. "
                    "Download the shard again, or leave the expert as it is with "
                    f"{expert.left_out_by}."
                )

    def _begin(self, number: int, into: Slots) -> None:
        """Let the thread read batch `number`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="expert-reader")
        self._pending = self._pool.submit(self._read, number, into)

    def _taken(self, number: int, into: Slots) -> _Read:
        """Batch `number`: what the thread reads, or where it was not asked to, read here."""
        begin = time.perf_counter()
        read = self._read(number, into) if self._pending is None else self._pending.result()
        self._pending = None
        self.seconds_waiting += time.perf_counter() - begin
        return read

    def _settle(self) -> None:
        """Wait for a read in flight, so that its buffer may be used again."""
        if self._pending is not None:
            self._pending.exception()
            self._pending = None


def read_expert(expert: ExpertMatrix) -> Tensor:
    """The matrix of one expert in its own memory: float32, (p, d), or (d, p) for down."""
    with ExpertReader([expert], 1) as reader:
        return next(reader.batches()).weights[0]


def file_order(expert: ExpertMatrix) -> tuple[Path, int, int]:
    """Sorts experts as their bytes lie in the files."""
    weight = expert.storage.weight
    return (weight.path, weight.start, weight.offset)


def _parts(expert: ExpertMatrix, rows: Rows) -> list[_Part]:
    """The parts of one slot. Scales that several rows share are few and always read whole."""
    parts, offset = [], 0
    for region in expert.storage.regions:
        by_row = region is expert.storage.weight or (
            region is expert.storage.scale and expert.storage.block[0] == 1
        )
        plan = plan_read(region, rows if by_row else None)
        parts.append(_Part(region, plan, offset))
        offset += _align(plan.nbytes)
    return parts


def _slot_bytes(parts: list[_Part]) -> int:
    return sum(_align(part.plan.nbytes) for part in parts)


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
