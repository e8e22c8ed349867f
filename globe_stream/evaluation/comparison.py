"""The scores of the original, of runs of several sizes, and of their SVDs, as rows."""

from dataclasses import asdict, dataclass

from globe_stream.config import Windows
from globe_stream.evaluation.perplexity import Score
from globe_stream.io.records import Json


@dataclass(frozen=True)
class Row:
    """One model of the comparison; `run` is empty for the original.

    `parameters_kept` is of the families replaced; errors are relative Frobenius, by family.
    """

    run: str
    model: str
    bases: int | None
    rank: int | None
    parameters_kept: float | None
    relative_errors: dict[str, float]
    score: Score


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
