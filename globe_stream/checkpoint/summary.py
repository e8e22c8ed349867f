"""What a checkpoint holds, in figures: the document of `inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.io.records import Record


@dataclass(frozen=True)
class FamilySummary(Record):
    """A family's experts of shape (p, d), `experts_per_layer` in the layer that has most."""

    experts: int
    p: int
    d: int
    dtype: str
    bytes: int
    layers: tuple[int, ...]
    experts_per_layer: int

    @classmethod
    def of(cls, experts: Sequence[ExpertMatrix]) -> "FamilySummary":
        """The figures of a family's `experts`."""
        rows, columns = experts[0].shape
        p, d = (columns, rows) if experts[0].role == "down" else (rows, columns)
        layers = sorted({expert.layer for expert in experts})
        return cls(
            experts=len(experts),
            p=p,
            d=d,
            dtype="/".join(sorted({expert.dtype for expert in experts})),
            bytes=sum(expert.nbytes for expert in experts),
            layers=tuple(layers),
            experts_per_layer=max(sum(e.layer == layer for e in experts) for layer in layers),
        )


@dataclass(frozen=True)
class CheckpointSummary(Record):
    """A checkpoint's type, layout and files, and its experts by family."""

    format: int
    model: str
    model_type: str
    layout: str
    revision: str | None
    shards: int
    bytes: int
    families: dict[str, FamilySummary]
    shared_experts: int
    mtp_layers_left_out: int
