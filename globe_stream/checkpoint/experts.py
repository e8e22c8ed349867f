"""One expert matrix of a checkpoint: which it is and where it lies."""

from dataclasses import dataclass, replace

from globe_stream.checkpoint.strided import FP8_BLOCK, Storage
from globe_stream.errors import InputError, option

FAMILIES = ("up", "gate", "down")
GATED_FAMILIES = ("gate", "up")
"""Those that a gated expert multiplies, phi(gate x) * (up x): the ones that are compressed."""


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """One matrix of one expert: (p, d) for up and gate, (d, p) for down.

    `dtype` is the stored one: BF16, F16, F32, F8_E4M3 or MXFP4. `shared` experts are always
    active; one of size k p is taken as k blocks of p rows, `expert` being the block's number.
    """

    family: str
    layer: int
    expert: int
    shared: bool
    dtype: str
    shape: tuple[int, int]
    storage: Storage

    @property
    def name(self) -> str:
        """For people: family, layer and number."""
        kind = "shared expert block" if self.shared else "expert"
        return f"{self.family} of layer {self.layer}, {kind} {self.expert}"

    @property
    def where(self) -> str:
        """For error messages: the tensor and its file."""
        return f"{self.storage.weight.path}: tensor {self.storage.weight.tensor}"

    @property
    def order(self) -> tuple[int, bool, int]:
        """Key of the order of positions: layer, routed before shared, number."""
        return (self.layer, self.shared, self.expert)

    @property
    def nbytes(self) -> int:
        """Stored bytes of this matrix alone, scales included."""
        return self.storage.nbytes


def split_shared(expert: ExpertMatrix, p: int) -> tuple[ExpertMatrix, ...]:
    """The k experts of intermediate size p in a shared expert of size k p.

    Raises InputError when p does not divide the shared expert's size.
    """
    down = expert.family == "down"
    size = expert.shape[1] if down else expert.shape[0]
    if size % p:
        raise InputError(
            f"{expert.where}: the shared expert of layer {expert.layer} has size {size}, no "
            f"multiple of the routed experts' {p}. Leave out {option('include_shared')}."
        )
    return tuple(_block(expert, number, p, down) for number in range(size // p))


def _block(expert: ExpertMatrix, number: int, p: int, down: bool) -> ExpertMatrix:
    weight, scale, first = expert.storage.weight, expert.storage.scale, number * p
    if scale is None:
        part = weight.column_block(first, p) if down else weight.row_block(first, p)
        storage = Storage(part)
    else:
        storage = _quantised_block(expert.storage, first, p, down)
    shape = (expert.shape[0], p) if down else (p, expert.shape[1])
    return replace(expert, expert=number, shape=shape, storage=storage)


def _quantised_block(storage: Storage, first: int, p: int, down: bool) -> Storage:
    assert storage.scale is not None
    begin, end = first // FP8_BLOCK, -(-(first + p) // FP8_BLOCK)
    if down:
        part = storage.weight.column_block(first, p)
        scale = storage.scale.column_block(begin, end - begin)
        return Storage(part, scale, (0, first % FP8_BLOCK))
    part = storage.weight.row_block(first, p)
    scale = storage.scale.row_block(begin, end - begin)
    return Storage(part, scale, (first % FP8_BLOCK, 0))
