"""Expert layers that compute with factors: A_i and H_i = phi(gain sum_j alpha_ij B_j), never W_hat.

`x W_hat^T = (x H^T) (scale A)^T + offset (sum of x)`: two thin products and a rank-one term. The H
of all experts that a pass needs of a layer are composed together; the cache keeps the hottest.
Tokens are sorted by expert once a layer, and no matrix is copied to stand beside others.
Plain torch; `structure` puts these into a transformers model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from globe_stream.factorization.model_files import FAMILIES, BankSizes
from globe_stream.factorization.packed_factors import adapter_values
from globe_stream.inference.bank import Bank
from globe_stream.inference.cache import ComposedCache, Key
from globe_stream.kernels.quantize import orthonormal_rows

_WORK_BYTES = 64 << 20
"""Composed matrices of one layer and family, in float32, that are made at a time."""


@dataclass(frozen=True)
class FamilyPart:
    """One family of one layer: its bank, and the experts with and without factors by row.

    `sizes` are those of the bank. A family without factors has no rows, and any bank.
    """

    bank: Bank
    rows: dict[int, int]
    dense_rows: dict[int, int]

    @property
    def sizes(self) -> BankSizes:
        """Sizes and constants of the bank."""
        return self.bank.sizes


class ComposedExperts(nn.Module):
    """What a transformers experts module becomes: its up and gate matrices replaced by factors.

    Mixed in before the module's own class, whose activation and biases are used. Parameters:
    `<family>_adapters` (E', p, r), `<family>_codes` (E', m) in float32 whatever the model's type,
    `<family>_dense` (E - E', p, d) for the experts without factors, and `down_proj` (E, d, p).
    """

    _parts: dict[str, FamilyPart]
    _cache: ComposedCache
    _layer: int

    def install(self, layer: int, parts: dict[str, FamilyPart], cache: ComposedCache) -> None:
        """Say where the module's banks and the cache are; they belong to the whole model."""
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_cache", cache)
        object.__setattr__(self, "_layer", layer)

    def composable(self) -> list[Key]:
        """Everything of this layer that the cache may hold."""
        return [
            (family, self._layer, expert)
            for family, part in self._parts.items()
            for expert in part.rows
        ]

    def composed_bytes(self, family: str) -> int:
        """Bytes of one composed matrix of a family."""
        bank = self._parts[family].bank
        rows = bank.sizes.rank if bank.sizes.bits is None else bank.sizes.p
        return rows * bank.sizes.d * bank.itemsize

    def composed(self, family: str, experts: list[int]) -> dict[int, Tensor]:
        """H (r, d) by expert, of those of `experts` that have factors; W_hat (p, d) if quantised.

        Where bank and adapters are quantised, an adapter is worth nothing without the Cholesky
        factor of H H^T, so it is the whole matrix that is made and kept.
        """
        part = self._parts[family]
        wanted = [expert for expert in experts if expert in part.rows]
        if not wanted:
            return {}
        codes: Tensor = getattr(self, f"{family}_codes")
        if torch.is_grad_enabled() and (codes.requires_grad or part.bank.trains):
            return self._compose(family, wanted)
        version = (codes._version, part.bank.version)
        found = {e: self._cache.find((family, self._layer, e), version) for e in wanted}
        missing = [expert for expert, kept in found.items() if kept is None]
        with torch.inference_mode(False), torch.no_grad():
            made = self._compose(family, missing) if missing else {}
            for expert, matrix in made.items():
                self._cache.keep((family, self._layer, expert), version, matrix)
        return {expert: made[expert] if kept is None else kept for expert, kept in found.items()}

    def _compose(self, family: str, experts: list[int]) -> dict[int, Tensor]:
        part = self._parts[family]
        codes: Tensor = getattr(self, f"{family}_codes")
        rows = [part.rows[expert] for expert in experts]
        made: Tensor = part.bank(codes[rows])
        if part.sizes.bits is not None:
            made = self._whole(family, rows, made)
        return dict(zip(experts, made.unbind(), strict=True))

    def _whole(self, family: str, rows: list[int], hidden: Tensor) -> Tensor:
        """W_hat (k, p, d) in the model's type of the experts in `rows`, with H (k, r, d)."""
        sizes = self._parts[family].sizes
        packed: Tensor = getattr(self, f"{family}_packed")
        scales: Tensor = getattr(self, f"{family}_scales")
        adapters = adapter_values(packed[rows], scales[rows], sizes.rank)
        whole = adapters @ orthonormal_rows(hidden).to(adapters.device)
        down: Tensor = self.down_proj  # type: ignore[assignment]
        return whole.mul_(sizes.scale).add_(sizes.offset).to(down.dtype)

    def project(self, family: str, inputs: Tensor, experts: dict[int, int]) -> Tensor:
        """inputs (t, d) times W_hat^T (d, p) of `experts`, each for its number of rows; (t, p)."""
        hidden = self.composed(family, list(experts))
        parts = torch.split(inputs, list(experts.values()))
        return torch.cat(
            [
                self._product(family, part, expert, hidden.get(expert))
                for part, expert in zip(parts, experts, strict=True)
            ]
        )

    def _product(self, family: str, inputs: Tensor, expert: int, hidden: Tensor | None) -> Tensor:
        """inputs (t, d) times W_hat^T (d, p) of one expert, whose H is `hidden` if it has one."""
        part = self._parts[family]
        if hidden is None:
            dense: Tensor = getattr(self, f"{family}_dense")
            return nn.functional.linear(inputs, dense[part.dense_rows[expert]])
        if part.sizes.bits is not None:
            return nn.functional.linear(inputs, hidden.to(inputs.device))
        adapters: Tensor = getattr(self, f"{family}_adapters")
        thin = nn.functional.linear(inputs, hidden.to(inputs.device))
        out = nn.functional.linear(thin, adapters[part.rows[expert]])
        if part.sizes.scale != 1:
            out = out * part.sizes.scale
        if part.sizes.offset:
            out = out + part.sizes.offset * inputs.sum(1, keepdim=True)
        return out

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Outputs (tokens, d) of the routed experts; arguments as transformers passes them.

        hidden_states (tokens, d), top_k_index (tokens, k), top_k_weights (tokens, k). Pairs of a
        token and an expert are taken in the order of experts, so that all but the products with an
        expert's own matrices is done for many experts at once.
        """
        choices = top_k_index.flatten()
        order = torch.argsort(choices, stable=True)
        weights = top_k_weights.flatten()
        # A number beyond the last marks a token that no expert of this process takes.
        count = int(self.num_experts)  # type: ignore[arg-type]
        counts = torch.bincount(choices, minlength=count)[:count].tolist()
        outputs = hidden_states.new_zeros(len(choices), hidden_states.shape[1])
        first = 0
        for experts in self._groups(counts):
            pairs = order[first : first + sum(experts.values())]
            made = self._experts(hidden_states[pairs // top_k_index.shape[1]], experts)
            outputs[pairs] = (made * weights[pairs, None]).to(outputs.dtype)
            first += len(pairs)
        return outputs.view(*top_k_index.shape, -1).sum(1)

    def _groups(self, counts: list[int]) -> Iterator[dict[int, int]]:
        """The experts with tokens and their counts, as many at a time as may be composed."""
        routed = [(expert, count) for expert, count in enumerate(counts) if count]
        largest = max(part.sizes.p * part.sizes.d for part in self._parts.values())
        step = max(1, _WORK_BYTES // (4 * largest))
        for first in range(0, len(routed), step):
            yield dict(routed[first : first + step])

    def _experts(self, inputs: Tensor, experts: dict[int, int]) -> Tensor:
        """Outputs (t, d) of `experts` for inputs (t, d), each for its number of rows."""
        gate, up = (self.project(family, inputs, experts) for family in FAMILIES)
        own: Any = self
        fused = _join(gate, up, concatenated=own.is_concatenated)
        if self.has_bias:
            rows = torch.tensor(list(experts), device=inputs.device).repeat_interleave(
                torch.tensor(list(experts.values()), device=inputs.device)
            )
            fused = fused + own.gate_up_proj_bias[rows]
        parts = torch.split(own._apply_gate(fused), list(experts.values()))
        out = torch.cat(
            [
                nn.functional.linear(part, own.down_proj[expert])
                for part, expert in zip(parts, experts, strict=True)
            ]
        )
        if self.has_bias:
            out = out + own.down_proj_bias[rows]
        return own.post_expert_norm(out) if self.has_post_expert_norm else out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ComposedExperts":
        """As `nn.Module`, but codes and scales keep their type when the model's is changed."""
        kept = [f"{family}_{part}" for family in FAMILIES for part in ("codes", "scales")]
        names = [name for name in kept if hasattr(self, name)]
        exact = {name: getattr(self, name).data for name in names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                after.data = before.to(after.device)
        return self


def _join(gate: Tensor, up: Tensor, *, concatenated: bool) -> Tensor:
    if concatenated:
        return torch.cat((gate, up), dim=-1)
    return torch.stack((gate, up), dim=-1).flatten(-2)
