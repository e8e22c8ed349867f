"""One expert matrix of a checkpoint: which it is and where it lies."""

from dataclasses import dataclass, replace

from globe_stream.checkpoint.dequantize import per_item
from globe_stream.checkpoint.strided import Storage
from globe_stream.errors import InputError, option

GATED_FAMILIES = ("gate", "up")
"""Those that a gated expert multiplies, phi(gate x) * (up x): the ones that are compressed."""


def family_name(role: str, section: str) -> str:
    """The family of the experts of a section ("" for the main one): "up", or "vision_up"."""
    return f"{section}_{role}" if section else role


Key = tuple[str, int, bool, int]
"""Family, layer, whether it is shared, and number of an expert matrix."""


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """One matrix of one expert: (p, d) for up and gate, (d, p) for down.

    `dtype` is the stored one: BF16, F16, F32, or how the elements are quantised (F8_E4M3, INT8,
    INT4, MXFP4, NVFP4). `shared` experts are always active; one of size k p is taken as k blocks
    of p rows, `expert` being the block's number.
    """

    family: str
    layer: int
    expert: int
    shared: bool
    dtype: str
    shape: tuple[int, int]
    storage: Storage

    @property
    def role(self) -> str:
        """What the family's matrices do: "up", "gate" or "down"."""
        return self.family.rsplit("_", 1)[-1]

    @property
    def section(self) -> str:
        """The set of experts that this one belongs to: "" for the main one, "vision", "talker"."""
        return self.family.rpartition("_")[0]

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
    def left_out_by(self) -> str:
        """The option, for error messages, with which a run takes all but this expert."""
        if self.shared:
            return f"{option('include_shared')} left out"
        return f"{option('exclude')} {self.layer}:{self.expert}"

    @property
    def order(self) -> tuple[int, bool, int]:
        """Key of the order of positions: layer, routed before shared, number."""
        return (self.layer, self.shared, self.expert)

    @property
    def member(self) -> tuple[int, int, int]:
        """Layer, number, and 1 if it is shared: its row of a run's `<group>/experts`."""
        return (self.layer, self.expert, int(self.shared))

    @property
    def nbytes(self) -> int:
        """Stored bytes of this matrix alone, scales included."""
        return self.storage.nbytes


def upright(expert: ExpertMatrix) -> ExpertMatrix:
    """`expert` as a (p, d) matrix: down transposed, the others as they are stored.

    Raises InputError for a quantised down matrix, whose scales belong to rows as stored.
    """
    if expert.role != "down":
        return expert
    storage = expert.storage
    if storage.scale is not None:
        raise InputError(
            f"{expert.where} is quantised ({expert.dtype}): down matrices can be compressed only "
            f"where they are stored in bf16, fp16 or fp32. Leave down out of {option('families')}."
        )
    weight = replace(storage.weight, transposed=not storage.weight.transposed)
    return replace(expert, shape=weight.shape, storage=replace(storage, weight=weight))


def shape_of(storage: Storage, dtype: str) -> tuple[int, int]:
    """Rows and columns of the matrix stored as `dtype` at `storage`."""
    rows, columns = storage.weight.shape
    return rows, columns * per_item(dtype)


def cut_rows(storage: Storage, first: int, count: int) -> Storage:
    """The storage of the rows `first` to `first + count` of the matrix."""
    weight = storage.weight.row_block(first, count)
    if storage.scale is None:
        return replace(storage, weight=weight)
    step = storage.block[0]
    begin, end = first // step, -(-(first + count) // step)
    scale = storage.scale.row_block(begin, end - begin)
    return replace(storage, weight=weight, scale=scale, phase=(first % step, storage.phase[1]))


def cut_columns(storage: Storage, first: int, count: int, dtype: str) -> Storage:
    """The storage of the columns `first` to `first + count`, multiples of a stored item's."""
    items = per_item(dtype)
    weight = storage.weight.column_block(first // items, count // items)
    if storage.scale is None:
        return replace(storage, weight=weight)
    step = storage.block[1]
    begin, end = first // step, -(-(first + count) // step)
    scale = storage.scale.column_block(begin, end - begin)
    return replace(storage, weight=weight, scale=scale, phase=(storage.phase[0], first % step))


def split_shared(expert: ExpertMatrix, p: int) -> tuple[ExpertMatrix, ...]:
    """The k experts of intermediate size p in a shared expert of size k p.

    Raises InputError when p does not divide the shared expert's size.
    """
    down = expert.role == "down"
    size = expert.shape[1] if down else expert.shape[0]
    if size % p or (down and p % per_item(expert.dtype)):
        raise InputError(
            f"{expert.where}: the shared expert of layer {expert.layer} has size {size}, no "
            f"multiple of the routed experts' {p}. Leave out {option('include_shared')}."
        )
    count = size // p
    return tuple(_block(expert, number, p, expert.expert * count) for number in range(count))


def _block(expert: ExpertMatrix, number: int, p: int, before: int) -> ExpertMatrix:
    if expert.role == "down":
        storage = cut_columns(expert.storage, number * p, p, expert.dtype)
    else:
        storage = cut_rows(expert.storage, number * p, p)
    shape = shape_of(storage, expert.dtype)
    return replace(expert, expert=before + number, shape=shape, storage=storage)


def key_of(expert: ExpertMatrix) -> Key:
    """What identifies an expert matrix across checkpoints of one layout."""
    return expert.family, expert.layer, expert.shared, expert.expert
