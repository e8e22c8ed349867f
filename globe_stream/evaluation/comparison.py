"""The scores of the original, of what runs make of it, and of what they compete with, as rows."""

from dataclasses import asdict, dataclass

from globe_stream.config import Windows
from globe_stream.evaluation.perplexity import Score
from globe_stream.io.records import Json


@dataclass(frozen=True)
class Row:
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


@dataclass(frozen=True)
class ModelComparison:
    """The rows, the original first."""

    text: str
    windows: Windows
    dtype: str
    rows: tuple[Row, ...]

    def document(self) -> Json:
        """As one JSON document."""
        return {"format": 1, **asdict(self), "windows": self.windows.model_dump()}
