"""Expert layers that compute with factors: A_i and phi(gain sum_j alpha_ij B_j), never W_hat.

`x W_hat^T = (x H^T) (scale A)^T + offset (sum of x)`: two thin products and a rank-one term. H is
composed on first use and kept in a cache with a budget. Plain torch; `patch` puts these into a
transformers model. Source: docs/design.md, section Export formats.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from globe_stream.checkpoint.experts import GATED_FAMILIES
from globe_stream.factorization.activation import Activation

Key = tuple[str, int, int]
"""Family, layer and expert."""


class ComposedCache:
    """Composed matrices H, least recently used first to go, within `budget` bytes.

    A matrix larger than the budget is not kept. `requests` counts by key what was asked for.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.requests: Counter[Key] = Counter()
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()

    def get(self, key: Key, compose: Callable[[], Tensor]) -> Tensor:
        """H of `key`, composed if it is not at hand."""
        self.requests[key] += 1
        found = self._kept.get(key)
        if found is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return found
        self.misses += 1
        made = compose()
        self._keep(key, made)
        return made

    def clear(self) -> None:
        """Forget every matrix; the counts stay."""
        self._kept.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def _keep(self, key: Key, made: Tensor) -> None:
        size = made.numel() * made.itemsize
        if size > self.budget:
            return
        while self.bytes + size > self.budget:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= dropped.numel() * dropped.itemsize
        self._kept[key] = made
        self.bytes += size


class Bank(nn.Module):
    """The atoms (m, r, d) of one unit; calling it composes H (r, d)."""

    def __init__(self, atoms: Tensor, activation: Activation) -> None:
        super().__init__()
        self.atoms = nn.Parameter(atoms, requires_grad=False)
        self.activation = activation

    def forward(self, code: Tensor) -> Tensor:
        """H (r, d) in the atoms' dtype from one expert's dense code (m,); summed in float32."""
        mixture = torch.zeros(1, *self.atoms.shape[1:], device=self.atoms.device)
        for number in code.nonzero()[:, 0].tolist():
            mixture[0].add_(self.atoms[number].float(), alpha=float(code[number]))
        return self.activation.apply(mixture)[0].to(self.atoms.dtype)


@dataclass(frozen=True)
class FamilyPart:
    """One family of one layer: which experts have factors, in which bank, and the constants."""

    bank: Bank
    rows: dict[int, int]  # expert to row of adapters and codes
    dense_rows: dict[int, int]  # the other experts to row of the dense matrices kept for them
    scale: float
    offset: float


class ComposedExperts(nn.Module):
    """What a transformers experts module becomes: its up and gate matrices replaced by factors.

    Mixed in before the module's own class, whose activation, biases and down projection are used.
    Parameters by family: `<family>_adapters` (E', p, r), `<family>_dense` (E - E', p, d) for the
    experts without factors, and `<family>_codes` (E', m), float32 seen as int32 so
    that no change of dtype ever rounds them.
    """

    _parts: dict[str, FamilyPart]
    _cache: ComposedCache
    _layer: int

    def install(self, layer: int, parts: dict[str, FamilyPart], cache: ComposedCache) -> None:
        """Say where the module's banks and the cache are; they belong to the whole model."""
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_cache", cache)
        object.__setattr__(self, "_layer", layer)

    def set_family(self, family: str, adapters: Tensor, codes: Tensor, dense: Tensor) -> None:
        """Register the tensors of one family."""
        self.register_parameter(f"{family}_adapters", nn.Parameter(adapters, requires_grad=False))
        self.register_parameter(f"{family}_dense", nn.Parameter(dense, requires_grad=False))
        self.register_buffer(f"{family}_codes", codes.float().contiguous().view(torch.int32))

    def composed(self, family: str, expert: int) -> Tensor:
        """H (r, d) of one expert, from the cache."""
        part = self._parts[family]

        def compose() -> Tensor:
            stored: Tensor = getattr(self, f"{family}_codes")
            made: Tensor = part.bank(stored[part.rows[expert]].view(torch.float32))
            return made

        return self._cache.get((family, self._layer, expert), compose)

    def composable(self) -> list[Key]:
        """Everything of this layer that the cache may hold."""
        return [
            (family, self._layer, expert)
            for family, part in self._parts.items()
            for expert in part.rows
        ]

    def project(self, family: str, inputs: Tensor, expert: int) -> Tensor:
        """inputs (t, d) times W_hat^T (d, p) of one expert."""
        part = self._parts[family]
        if expert not in part.rows:
            dense: Tensor = getattr(self, f"{family}_dense")
            return nn.functional.linear(inputs, dense[part.dense_rows[expert]])
        hidden = self.composed(family, expert).to(inputs.device)
        adapters: Tensor = getattr(self, f"{family}_adapters")
        thin = nn.functional.linear(inputs, hidden)
        out = nn.functional.linear(thin, adapters[part.rows[expert]]).mul_(part.scale)
        return out.add_(inputs.sum(1, keepdim=True), alpha=part.offset)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Outputs (tokens, d) of the routed experts; arguments as transformers passes them.

        hidden_states (tokens, d), top_k_index (tokens, k), top_k_weights (tokens, k).
        """
        outputs = torch.zeros_like(hidden_states)
        for expert in torch.unique(top_k_index).tolist():
            if expert >= self.num_experts:  # marks a token that no expert of this process takes
                continue
            token, choice = torch.where(top_k_index == expert)
            part = self._expert(hidden_states[token], expert)
            part = part * top_k_weights[token, choice, None]
            outputs.index_add_(0, token, part.to(outputs.dtype))
        return outputs

    def _expert(self, inputs: Tensor, expert: int) -> Tensor:
        gate, up = (self.project(family, inputs, expert) for family in GATED_FAMILIES)
        own: Any = self
        fused = _join(gate, up, concatenated=own.is_concatenated)
        if self.has_bias:
            fused = fused + own.gate_up_proj_bias[expert]
        inner = own._apply_gate(fused)
        down = own.down_proj[expert]
        out = inner @ down if self.is_transposed else nn.functional.linear(inner, down)
        if self.has_bias:
            out = out + own.down_proj_bias[expert]
        return own.post_expert_norm(out) if self.has_post_expert_norm else out


def _join(gate: Tensor, up: Tensor, *, concatenated: bool) -> Tensor:
    if concatenated:
        return torch.cat((gate, up), dim=-1)
    return torch.stack((gate, up), dim=-1).flatten(-2)
