"""The ways of storing a run's experts that `eval` compares, by name, and the bits of each."""

import re
from dataclasses import dataclass, field

from globe_stream.errors import InputError, option
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.rounded_baseline import matrix_bits, svd_bits
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.dtypes import ITEM_BYTES

KNOWN = (
    "original, dense, patched, model, svd, rtn-B, svd-rtn-B, dense-rtn-B, model-B-A "
    "(B, A: bits from 2 to 8)"
)
SCORED = "original,dense,svd"
"""What is scored unless models are named."""

FRONTIER = (
    "original,rtn-8,rtn-4,rtn-3,rtn-2,model,model-8-8,model-8-4,model-6-4,model-6-3,"
    "svd,svd-rtn-8,svd-rtn-4,dense-rtn-4"
)
"""What is scored for a frontier, unless models are named."""

_NAME = re.compile(
    r"(?P<plain>original|dense|patched|model|svd)"
    r"|(?P<rounded>rtn|svd-rtn|dense-rtn)-(?P<bits>[2-8])"
    r"|model-(?P<bank>[2-8])-(?P<adapters>[2-8])"
)


@dataclass(frozen=True)
class Variant:
    """One way: `kind` without bits, and the bits where it has some.

    `model` has those of bank and adapters, all that is rounded to nearest has one number.
    """

    kind: str
    bits: tuple[int, ...] = field(default=())

    @property
    def name(self) -> str:
        """As `parse_variants` takes it."""
        return "-".join((self.kind, *map(str, self.bits)))

    @property
    def of_run(self) -> bool:
        """Whether it differs from run to run of a checkpoint."""
        return self.kind not in ("original", "rtn")

    @property
    def of_svd(self) -> bool:
        """Whether it is the SVD of equal size, which has no bank."""
        return self.kind in ("svd", "svd-rtn")

    @property
    def needs_training(self) -> bool:
        """Whether the run's bank is used."""
        return self.kind in ("dense", "patched", "model", "dense-rtn")

    def bits_per_weight(self, source: TrainedRun) -> float | None:
        """Stored bits a weight of the families replaced; None where the files must be asked."""
        if self.kind in ("patched", "model"):
            return None
        weights = stored = 0.0
        for fitted in source.groups:
            sizes = fitted.group.sizes
            elements = sizes.experts * sizes.p * sizes.d
            weights += elements
            stored += elements * self._group_bits(fitted.group)
        return stored / weights

    def _group_bits(self, group: ExpertGroup) -> float:
        item = ITEM_BYTES.get(group.experts[0].dtype, 2)
        if self.of_svd:
            return svd_bits(group.sizes, self.bits[0] if self.bits else None, item)
        if self.bits:
            return matrix_bits(group.sizes, self.bits[0])
        if self.kind == "original":
            return 8 * sum(expert.nbytes for expert in group.experts) / _elements(group)
        return 8.0 * item


def _elements(group: ExpertGroup) -> int:
    return group.sizes.experts * group.sizes.p * group.sizes.d


def parse_variants(names: tuple[str, ...]) -> tuple[Variant, ...]:
    """The variants of these names; InputError for a name that is not known."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(f"{option('models')} {','.join(names)!r}: use some of {KNOWN}")
        if match["plain"]:
            found.append(Variant(match["plain"]))
        elif match["rounded"]:
            found.append(Variant(match["rounded"], (int(match["bits"]),)))
        else:
            found.append(Variant("model", (int(match["bank"]), int(match["adapters"]))))
    return tuple(found)
