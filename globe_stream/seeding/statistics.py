"""First pass: the sums that normalization and every kind of proxies need, all at once.

Sums are kept for the raw weights; the normalized quantities follow exactly from them, since
normalization is affine: sum (W - mu)(W - mu)^T = G - mu (s 1^T + 1 s^T) + N d mu^2 1 1^T with
s the row sums. The Procrustes mean is of the raw weights: their mean is a negligible rank-one term
in it. Source: docs/design.md, sections Normalization and Proxies.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globe_stream.checkpoint.digests import DIGEST_BYTES
from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import Batch, ExpertReader
from globe_stream.errors import InputError, option
from globe_stream.factorization.normalization import Normalization
from globe_stream.io.records import Scalars
from globe_stream.io.world import ALONE, World
from globe_stream.memory.operations import MEAN_SAMPLES
from globe_stream.seeding.procrustes import ProcrustesMean
from globe_stream.store import arrays
from globe_stream.store.arrays import Loader

_BY_EXPERT = ("norms", "sums", "digests")
"""Arrays with a row for every expert; the others are sums over experts."""


@dataclass(frozen=True)
class Statistics:
    """The sums of the first pass, float64 and of the raw weights."""

    norms: Tensor  # (N,) squared Frobenius norm of each expert
    row_sum: Tensor  # (p,) sum over experts and columns
    subset_energy: Tensor  # (p,) squared sum over the row-selection subset
    subset_sum: Tensor  # (p,) sum over the row-selection subset
    left_gram: Tensor | None  # (p, p) sum of W W^T
    procrustes_mean: Tensor | None  # (r, d), generalised Procrustes
    count: int  # experts
    subset: int  # experts in the row-selection subset
    width: int  # d

    def normalization(self, kind: str) -> Normalization:
        """`Normalization.from_sums` over all elements of the group, or the identity for "none"."""
        if kind == "none":
            return Normalization()
        elements = self.count * len(self.row_sum) * self.width
        return Normalization.from_sums(float(self.row_sum.sum()), float(self.norms.sum()), elements)

    def normalized_norms(self, normalization: Normalization, sums: Tensor) -> Tensor:
        """(N,) squared norms of the normalized experts, from each expert's sum (N,)."""
        mean, size = normalization.mean, len(self.row_sum) * self.width
        return (self.norms - 2 * mean * sums + size * mean**2) / normalization.scale**2

    def row_energy(self, normalization: Normalization) -> Tensor:
        """(p,) energy of each row over the subset, normalized."""
        mean, cells = normalization.mean, self.subset * self.width
        centered = self.subset_energy - 2 * mean * self.subset_sum + cells * mean**2
        return centered / normalization.scale**2

    def normalized_left_gram(self, normalization: Normalization) -> Tensor:
        """(p, p) sum of W~ W~^T."""
        assert self.left_gram is not None
        mean, columns = normalization.mean, self.count * self.width
        cross = mean * (self.row_sum[:, None] + self.row_sum[None, :])
        return (self.left_gram - cross + columns * mean**2) / normalization.scale**2


class StatisticsAccumulator:
    """Gathers `Statistics`, with what the `kinds` of proxies of rank r = `rank` need."""

    def __init__(
        self,
        experts: list[ExpertMatrix],
        subset: frozenset[int],
        kinds: Collection[str],
        rank: int,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        p, self._width = experts[0].shape
        left_gram = "left_gram" in kinds
        self._count = len(experts)
        self._experts, self._device = experts, device
        self._subset = subset
        # Devices without float64 accumulate there in float32 and add up here, batch by batch.
        self._sums = {
            name: torch.zeros(len(experts), dtype=torch.float64) for name in ("norms", "sums")
        }
        self._sums |= {
            name: torch.zeros(p, dtype=torch.float64)
            for name in ("row_sum", "subset_energy", "subset_sum")
        }
        self._sums["digests"] = torch.zeros(len(experts), DIGEST_BYTES, dtype=torch.uint8)
        self._product = torch.empty(p, p, device=device) if left_gram else None
        if left_gram:
            self._sums["left_gram"] = torch.zeros(p, p, dtype=torch.float64)
        self._procrustes_mean = (
            ProcrustesMean(rank, self._width, device) if "procrustes" in kinds else None
        )
        sampled = evenly(len(experts), MEAN_SAMPLES)
        self._in_mean = frozenset(sampled if world.leads else ())
        self._later = () if world.leads else tuple(sampled)

    @property
    def expert_sums(self) -> Tensor:
        """(N,) sum of each expert's elements."""
        return self._sums["sums"]

    @property
    def digests(self) -> Tensor:
        """(N, 16) uint8, of each expert's stored bytes."""
        return self._sums["digests"]

    def update(self, batch: Batch) -> str:
        weights = batch.weights
        if batch.digests is not None:
            self._sums["digests"][batch.positions] = batch.digests
        energy = torch.linalg.vector_norm(weights, dim=2).cpu().double().square()
        total = weights.sum(2).cpu().double()
        self._sums["norms"][batch.positions] = energy.sum(1)
        self._sums["sums"][batch.positions] = total.sum(1)
        self._sums["row_sum"] += total.sum(0)
        chosen = [k for k, position in enumerate(batch.positions) if position in self._subset]
        self._sums["subset_energy"] += energy[chosen].sum(0)
        self._sums["subset_sum"] += total[chosen].sum(0)
        if self._product is not None:
            for matrix in weights:
                torch.mm(matrix, matrix.T, out=self._product)
                self._sums["left_gram"] += self._product.cpu()
        if self._procrustes_mean is not None:
            for matrix, position in zip(weights, batch.positions, strict=True):
                if position in self._in_mean:
                    self._procrustes_mean.add(matrix)
        return ""

    def arrays(self) -> Mapping[str, arrays.Storable]:
        if self._procrustes_mean is None:
            return dict(self._sums)
        return {**self._sums, "procrustes_mean": self._procrustes_mean.mean}

    def scalars(self) -> Scalars:
        return (
            {}
            if self._procrustes_mean is None
            else {"procrustes_count": self._procrustes_mean.count}
        )

    def reduce(self, world: World, positions: Sequence[int]) -> None:
        for name, values in self._sums.items():
            if name in _BY_EXPERT:
                world.fill_(values, positions)
            else:
                world.add_(values)
        if self._procrustes_mean is not None:
            self._pass_mean_on(self._procrustes_mean, world, frozenset(positions))

    def _pass_mean_on(self, mean: ProcrustesMean, world: World, positions: frozenset[int]) -> None:
        """Every process in turn takes its experts into the mean of those before it.

        The mean is a chain, each expert rotated to those before: so it is that of one process.
        """
        for rank in range(world.size):
            own = [position for position in self._later if position in positions]
            if rank == world.rank and own:
                with ExpertReader(self._experts, 1, device=self._device, positions=own) as reader:
                    for batch in reader.batches():
                        mean.add(batch.weights[0])
            world.broadcast_(mean.mean, rank)
            mean.count = world.gather(mean.count)[rank]

    def restore(self, load: Loader, scalars: Scalars) -> None:
        for name in self._sums:
            self._sums[name] = torch.from_numpy(arrays.read(load(name)))
        if self._procrustes_mean is not None:
            self._procrustes_mean.mean.copy_(torch.from_numpy(arrays.read(load("procrustes_mean"))))
            self._procrustes_mean.count = int(scalars["procrustes_count"])

    def result(self) -> Statistics:
        """The statistics of all experts seen."""
        kept = {
            name: values for name, values in self._sums.items() if name not in ("sums", "digests")
        }
        return Statistics(
            left_gram=kept.pop("left_gram", None),
            procrustes_mean=None if self._procrustes_mean is None else self._procrustes_mean.mean,
            count=self._count,
            subset=len(self._subset),
            width=self._width,
            **kept,
        )


class ZeroExperts(InputError):
    """Routed experts are zero everywhere: no adapter stands for them, so no group may have them."""

    def __init__(self, experts: Sequence[ExpertMatrix]) -> None:
        super().__init__(
            f"{', '.join(expert.name for expert in experts)}: zero everywhere. Leave out with "
            f"{option('exclude')} {','.join(f'{e.layer}:{e.expert}' for e in experts)}"
        )
        self.experts = tuple(experts)


def require_usable(experts: Sequence[ExpertMatrix], norms: Tensor) -> None:
    """Look at the squared norm of every expert, `norms` (N,), for what cannot be computed with.

    Raises InputError for the first that is larger than a millionth of float32's range, where
    products of the weights overflow, and for a shared one that is zero; else ZeroExperts when
    there are routed ones that are zero.
    """
    largest = 1e-6 * torch.finfo(torch.float32).max
    zero = []
    for expert, norm in zip(experts, norms.tolist(), strict=True):
        if norm >= largest:
            raise InputError(
                f"{expert.where}: {expert.name} has elements too large to compute with. Leave it "
                f"as it is with {expert.left_out_by}, or download the shard again"
            )
        if norm == 0 and expert.shared:
            raise InputError(
                f"{expert.where}: {expert.name} is zero everywhere. Leave it as it is with "
                f"{expert.left_out_by}"
            )
        if norm == 0:
            zero.append(expert)
    if zero:
        raise ZeroExperts(zero)


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` positions, evenly spaced; all of them when there are fewer."""
    kept = min(count, total)
    return [k * total // kept for k in range(kept)]
