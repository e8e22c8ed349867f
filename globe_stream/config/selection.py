"""Which experts of the checkpoint take part."""

from typing import Literal

from pydantic import Field, field_validator

from globe_stream.checkpoint.custom_layout import layout_text, rule_of
from globe_stream.checkpoint.layouts import ROLES, ModelType
from globe_stream.config.options import Options
from globe_stream.errors import InputError, option


class SelectionConfig(Options):
    """Families, layers and experts to compress."""

    families: str = Field(
        "both",
        description="Expert families to compress: both is up and gate; a list may also name down, "
        "whose matrices are taken transposed, and those of further sets of experts, such as "
        "vision_up.",
        json_schema_extra={"metavar": "up|gate|both|A,B"},
    )
    single_layer: int | None = Field(None, ge=0, description="Take experts from this layer only.")
    layers: str | None = Field(
        None, description="Take layers A to B-1 only.", json_schema_extra={"metavar": "A:B"}
    )
    max_experts: int | None = Field(None, ge=2, description="At most this many experts a family.")
    sample_method: Literal["first_n", "evenly_spaced"] = Field(
        "first_n", description=f"Which experts {option('max_experts')} keeps."
    )
    include_shared: bool = Field(
        False,
        description="Also take shared experts, cut into blocks of the routed experts' height.",
    )
    exclude: str | None = Field(
        None,
        description="Leave these routed experts as they are: layer:expert, * for all.",
        json_schema_extra={"metavar": "L:E,..."},
    )
    include_mtp: bool = Field(
        False, description="Also take the experts of multi-token-prediction layers."
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a hub model.",
        json_schema_extra={"metavar": "REVISION"},
    )

    layout: str | None = Field(
        None,
        description="Rule for the names of the experts (TOML or JSON), for a model type that has "
        "none; a run keeps the rule itself.",
        json_schema_extra={"metavar": "FILE"},
    )

    @field_validator("layout")
    @classmethod
    def _rule_itself(cls, given: str | None) -> str | None:
        return None if given is None else layout_text(given)

    @property
    def rule(self) -> ModelType | None:
        """The rule that `layout` gives."""
        return None if self.layout is None else rule_of(self.layout)

    @property
    def family_names(self) -> tuple[str, ...]:
        """The families asked for; `both` may mean fewer (see `checkpoint.index.select`)."""
        return ("up", "gate") if self.families == "both" else tuple(self.families.split(","))

    def unused(self) -> dict[str, str]:
        if self.max_experts is None:
            return {"sample_method": f"without {option('max_experts')}"}
        return {}

    def check(self) -> None:
        names = self.family_names
        wrong = [name for name in names if name.rsplit("_", 1)[-1] not in ROLES]
        if wrong or len(set(names)) < len(names):
            raise InputError(
                f"{option('families')} {self.families!r}: give up, gate or both, or a list of "
                "different families such as up,gate,down (inspect lists a model's)"
            )
        if self.single_layer is not None and self.layers is not None:
            raise InputError(
                f"{option('single_layer')} and {option('layers')}: both choose layers. "
                "Give one of them"
            )
