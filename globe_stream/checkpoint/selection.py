"""Which experts of a checkpoint a run takes."""

from dataclasses import dataclass
from typing import Literal

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.errors import InputError, option


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of families, layers and experts.

    `layers` (A, B) takes the layers A <= L < B; `max_experts` is counted in each family, over the
    list sorted by layer, routed before shared, number.
    """

    families: tuple[str, ...] = ("up", "gate")
    single_layer: int | None = None
    layers: tuple[int, int] | None = None
    max_experts: int | None = None
    sample_method: Literal["first_n", "evenly_spaced"] = "first_n"
    include_shared: bool = False

    def takes_layer(self, layer: int) -> bool:
        """Whether `layer` is among those chosen."""
        if self.single_layer is not None and layer != self.single_layer:
            return False
        return self.layers is None or self.layers[0] <= layer < self.layers[1]


def parse_layers(text: str) -> tuple[int, int]:
    """The half-open range of layers meant by `text`, "A:B"; InputError if it is none."""
    first, colon, last = text.partition(":")
    if not colon or not first.strip().isdigit() or not last.strip().isdigit():
        raise InputError(f"layers {text!r} are not understood: write A:B, such as 0:12.")
    begin, end = int(first), int(last)
    if begin >= end:
        raise InputError(f"layers {text!r} are none: B must be greater than A.")
    return begin, end


def choose(experts: tuple[ExpertMatrix, ...], selection: Selection) -> tuple[ExpertMatrix, ...]:
    """The experts of one family, already sorted, that `selection` takes.

    Raises InputError when nothing is left.
    """
    chosen = tuple(expert for expert in experts if selection.takes_layer(expert.layer))
    if not chosen:
        present = sorted({expert.layer for expert in experts})
        raise InputError(
            f"no experts in the layers asked for: routed experts are in the layers "
            f"{_ranges(present)}. Change {option('single_layer')} or {option('layers')}."
        )
    _require_layers(experts, selection)
    wanted = selection.max_experts
    if wanted is None or wanted >= len(chosen):
        return chosen
    if wanted < 1:
        raise InputError(f"{option('max_experts')} is {wanted}: at least 1 expert is needed.")
    if selection.sample_method == "first_n":
        return chosen[:wanted]
    return tuple(chosen[i * len(chosen) // wanted] for i in range(wanted))


def _require_layers(experts: tuple[ExpertMatrix, ...], selection: Selection) -> None:
    """Raise InputError when the layers asked for end beyond those there are."""
    last = experts[-1].layer
    if selection.layers is not None and selection.layers[1] > last + 1:
        first, end = selection.layers
        raise InputError(
            f"{option('layers')} {first}:{end}: the last layer with experts is {last}. "
            f"Write {first}:{last + 1}."
        )


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers with neighbours joined: "0-3, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
