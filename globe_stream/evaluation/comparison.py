"""The scores of the original, of what runs make of it, and of what they compete with, as rows."""

from dataclasses import dataclass

from globe_stream.config import Windows
from globe_stream.evaluation.perplexity import Score
from globe_stream.io.records import Record


@dataclass(frozen=True)
class Row(Record):
    """One model of the comparison; `run` is empty for what no run decides.

    `parameters_kept` and `bits_per_weight`, as stored, are of the families replaced; errors are
    relative Frobenius, by family.
    """

    run: str
    model: str
    bases: int | None
    rank: int | None
    parameters_kept: float | None
    relative_errors: dict[str, float]
    score: Score
    bits_per_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelComparison(Record):
    """The rows, the original first."""

    format: int = 1
    text: str
    windows: Windows
    dtype: str
    rows: tuple[Row, ...]
