"""One shard of the source written anew: what is kept, then every replaced expert in its place."""

from dataclasses import dataclass
from typing import Protocol

from globe_stream.checkpoint.experts import Key, key_of
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.checkpoint.strided import StridedMatrix
from globe_stream.engine.progress import Tally
from globe_stream.export.convert import fill_tensor, write_matrix
from globe_stream.export.shard_plan import Shard
from globe_stream.export.staging import ExportWork
from globe_stream.export.written_errors import FileErrors, Written
from globe_stream.factorization.reconstruction import Approximation, BankApproximation, GroupFits
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.safetensors_writer import SafetensorsWriter


class Replacements(Protocol):
    """What is put in the experts' place."""

    def of(self, number: int) -> Approximation:
        """The approximation of the group with this number."""


@dataclass(frozen=True)
class Rebuilt:
    """Reconstructions of the experts of `source`, fitted by `fits`."""

    source: TrainedRun
    fits: GroupFits

    def of(self, number: int) -> BankApproximation:
        """That of the group with this number."""
        return self.fits.of(self.source.groups[number])


@dataclass(frozen=True)
class ShardRewriter:
    """Writes shards one by one: first what is kept, then every replaced expert in its place."""

    source: TrainedRun
    dequantised: dict[Key, StridedMatrix]
    replacements: Replacements
    batch: int
    tally: Tally

    def write(self, work: ExportWork, shard: Shard) -> None:
        """Write `shard`, unless it is finished already."""
        name = work.name_of(shard.planned)
        if work.record(name) is not None:
            self.tally.advance(len(shard.places), name)
            return
        self._fetch(shard)
        errors = FileErrors()
        with work.writing(shard.planned, errors) as file:
            for tensor in shard.tensors:
                fill_tensor(file, tensor, self.source.index, self.dequantised)
            for number, fitted in enumerate(self.source.groups):
                error = self._replace_group(file, shard, number)
                errors.add(fitted.group.family, Written(error))

    def _fetch(self, shard: Shard) -> None:
        paths = {tensor.source.path for tensor in shard.tensors}
        paths |= {tensor.scale.path for tensor in shard.tensors if tensor.scale}
        self.source.index.fetch_files(sorted(paths))

    def _replace_group(self, file: SafetensorsWriter, shard: Shard, number: int) -> float:
        """Replace one group's experts in one shard; returns their squared error as stored."""
        group = self.source.groups[number].group
        positions = [
            position
            for position, expert in enumerate(group.experts)
            if key_of(expert) in shard.places
        ]
        if not positions:
            return 0.0
        chosen = [group.experts[position] for position in positions]
        self.source.index.fetch(chosen)
        approximation, squared = self.replacements.of(number), 0.0
        expected = self.source.groups[number].expected(positions)
        with ExpertReader(chosen, self.batch, expected=expected) as reader:
            for part in reader.batches():
                for slot, weights in zip(part.positions, part.weights, strict=True):
                    original = weights.clone()
                    replacement = approximation.replace(positions[slot], weights)
                    place = shard.places[key_of(chosen[slot])]
                    stored = write_matrix(file, place, replacement)
                    squared += float(original.sub_(stored).norm().double().square())
                self.tally.advance(len(part.positions), group.key)
        return squared
