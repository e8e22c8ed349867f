"""Options of synthetic checkpoints."""

from pydantic import Field

from globe_stream.config.names import DtypeName
from globe_stream.config.options import Options
from globe_stream.errors import InputError, option

_RANK_RATIO = 0.75
_MOST_EXPERTS = 10**6


class SyntheticModel(Options):
    """Sizes and contents of a synthetic checkpoint.

    Raises InputError for sizes that make no model.
    """

    layers: int = Field(4, ge=1, description="Layers.")
    experts: int = Field(16, ge=1, description="Routed experts a layer.")
    hidden: int = Field(192, ge=1, description="Hidden size d.")
    intermediate: int = Field(132, ge=1, description="Expert intermediate size p.")
    planted_bases: int | None = Field(
        None,
        ge=1,
        description="Make experts from a planted bank of M atoms.",
        json_schema_extra={"metavar": "M"},
    )
    planted_rank: int | None = Field(
        None,
        ge=1,
        description="Rows r of a planted atom (default: 0.75 of the smaller side).",
        json_schema_extra={"metavar": "R"},
    )
    noise: float = Field(0.0, ge=0, description="Noise on planted experts, relative to their RMS.")
    dtype: DtypeName = Field("bf16", description="Stored type.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed.")

    def check(self) -> None:
        if self.layers * self.experts > _MOST_EXPERTS:
            raise InputError(
                f"{option('layers')} {self.layers} of {option('experts')} {self.experts}: "
                f"more experts than the {_MOST_EXPERTS:,} that can be made. Use fewer"
            )
        if self.planted_bases is None and (self.noise or self.planted_rank is not None):
            raise InputError(
                f"{option('noise')} and a planted rank need {option('planted_bases')}."
            )
        smaller = min(self.intermediate, self.hidden)
        if self.rank > smaller:
            raise InputError(
                f"{option('planted_rank')} {self.rank}: it must lie between 1 and {smaller}, "
                "the smaller side of an expert"
            )

    @property
    def rank(self) -> int:
        """r of the planted atoms."""
        if self.planted_rank is not None:
            return self.planted_rank
        return max(1, round(_RANK_RATIO * min(self.intermediate, self.hidden)))
