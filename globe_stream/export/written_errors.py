"""Squared errors of what an export has written: of the matrices, and weighted by their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from globe_stream.factorization.error_sums import ErrorSums, pooled_by


@dataclass(frozen=True)
class Written:
    """Of one expert or several: ||W_hat - W||^2 and, with a metric, ||(W_hat - W) X^T||^2."""

    squared_error: float = 0.0
    inputs: ErrorSums | None = None

    def __add__(self, other: "Written") -> "Written":
        parts = [part for part in (self.inputs, other.inputs) if part is not None]
        inputs = sum(parts, ErrorSums()) if parts else None
        return Written(self.squared_error + other.squared_error, inputs)


@dataclass
class FileErrors:
    """Of the experts in one file, by family."""

    by_family: dict[str, Written] = field(default_factory=dict)

    def add(self, family: str, written: Written) -> None:
        """Some experts of `family` more are in the file."""
        self.by_family[family] = self.by_family.get(family, Written()) + written

    @property
    def squared(self) -> dict[str, float]:
        """||W_hat - W||^2 by family."""
        return {family: one.squared_error for family, one in self.by_family.items()}

    @property
    def inputs(self) -> dict[str, tuple[float, float]]:
        """||(W_hat - W) X^T||^2 and ||W X^T||^2 by family."""
        return {
            family: (one.inputs.squared_error, one.inputs.squared_norm)
            for family, one in self.by_family.items()
            if one.inputs is not None
        }


def input_weighted_errors(files: list[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """||(W_hat - W) X^T|| / ||W X^T|| by family over all experts of some `files`."""
    sums = pooled_by((family, ErrorSums(*pair)) for one in files for family, pair in one.items())
    return {family: sums[family].relative_error for family in sorted(sums)}
