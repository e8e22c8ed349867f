"""Which experts of a checkpoint a run takes."""

from dataclasses import dataclass
from typing import Literal

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.errors import InputError, option

Exclusion = tuple[int | None, int | None]
"""Layer and number of experts to leave out; None stands for all."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of families, layers and experts.

    `layers` (A, B) takes the layers A <= L < B; `max_experts` is counted in each family, over the
    list sorted by layer, routed before shared, number. Routed experts that `exclude` names, or
    `zero`, which were found to be zero everywhere, are left out before.
    """

    families: tuple[str, ...] = ("up", "gate")
    single_layer: int | None = None
    layers: tuple[int, int] | None = None
    max_experts: int | None = None
    sample_method: Literal["first_n", "evenly_spaced"] = "first_n"
    include_shared: bool = False
    exclude: tuple[Exclusion, ...] = ()
    zero: tuple[tuple[int, int], ...] = ()

    def takes_layer(self, layer: int) -> bool:
        """Whether `layer` is among those chosen."""
        if self.single_layer is not None and layer != self.single_layer:
            return False
        return self.layers is None or self.layers[0] <= layer < self.layers[1]

    def excludes(self, expert: ExpertMatrix) -> bool:
        """Whether `expert` is a routed one that is to be left out."""
        return not expert.shared and any(
            layer in (None, expert.layer) and number in (None, expert.expert)
            for layer, number in (*self.exclude, *self.zero)
        )


def parse_exclude(text: str) -> tuple[Exclusion, ...]:
    """The experts meant by `text`, "L:E,L:E", where * stands for every layer or every number.

    Raises InputError if it is none.
    """
    found = []
    for part in text.split(","):
        sides = [side.strip() for side in part.split(":")]
        known = all(side == "*" or (side.isascii() and side.isdigit()) for side in sides)
        if len(sides) != 2 or not known or sides == ["*", "*"]:
            raise InputError(
                f"{option('exclude')} {part.strip()!r} is not understood: write layer:expert, such "
                "as 3:17, or 3:* for a layer or *:17 for one expert of every layer; several with "
                "commas"
            )
        layer, number = (None if side == "*" else int(side) for side in sides)
        found.append((layer, number))
    return tuple(found)


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
    _require_excluded(experts, selection)
    chosen = tuple(expert for expert in chosen if not selection.excludes(expert))
    if not chosen:
        count = len(selection.zero)
        zero = f": {count} have a matrix that is zero everywhere" if count else ""
        raise InputError(f"{option('exclude')} leaves no expert of {experts[0].family}{zero}")
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


def _require_excluded(experts: tuple[ExpertMatrix, ...], selection: Selection) -> None:
    """Raise InputError for an exclusion that names no expert there is."""
    for layer, number in selection.exclude:
        one = Selection(exclude=((layer, number),))
        if not any(one.excludes(expert) for expert in experts):
            named = ":".join("*" if side is None else str(side) for side in (layer, number))
            raise InputError(
                f"{option('exclude')} {named}: there is no such expert of {experts[0].family}"
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
