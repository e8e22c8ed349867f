"""The baseline that trains everything together: Adam on adapters, bank and code logits.

This is what MoBE does (W_i ~= A_i f(sum_j softmax(logits_i)_j B_j), one bank a layer or, here, also
one for all layers), full batch, in memory, one gradient step a pass over the data. Every wanted
number of passes is a run of its own whose rate falls to zero along a cosine, so that each figure is
the best that Adam makes of that many passes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "tanh": torch.tanh,
    "identity": lambda mixtures: mixtures,
}

RATES = {"adapters": 0.05, "bank": 0.5, "logits": 0.1}
"""The first rates, which did best of some twenty settings on `qwen2moe-tiny` at 60 passes."""
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class AdamSettings:
    """Sizes and rates of a baseline."""

    rank: int
    bases: int  # of all banks together
    activation: str = "silu"
    codes: str = "softmax"  # or "exp": non-negative without the sum to one
    rate: float = 1.0  # factor on RATES
    seed: int = 0


@dataclass(frozen=True)
class AdamResult:
    """The relative Frobenius error after the last step, and the time it took."""

    error: float
    seconds: float


def train_adam(
    weights: Tensor, groups: list[list[int]], settings: AdamSettings, passes: int
) -> AdamResult:
    """Fit experts W (N, p, d) in `passes` passes, the last of which only measures.

    `groups` are the experts that share a bank; each bank gets bases / len(groups) atoms, so the
    parameters are as many as with one bank.
    """
    begin = time.monotonic()
    mean, scale = weights.mean(), weights.std()
    data = (weights - mean) / scale
    model = _Factors(data.shape, groups, settings)
    first = {name: settings.rate * rate for name, rate in RATES.items()}
    optimiser = torch.optim.Adam(
        [{"params": model.parts[name], "lr": rate} for name, rate in first.items()], betas=BETAS
    )
    for step in range(passes - 1):
        for group, rate in zip(optimiser.param_groups, first.values(), strict=True):
            group["lr"] = rate * _cosine(step, passes - 1)
        optimiser.zero_grad(set_to_none=True)
        loss = (data - model.reconstruct()).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        lost = scale * (data - model.reconstruct()).norm()
    return AdamResult(float(lost / weights.norm()), time.monotonic() - begin)


def _cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


class _Factors:
    """Adapters (N, p, r), one bank (m, r, d) a group and logits (N, m)."""

    def __init__(self, shape: torch.Size, groups: list[list[int]], settings: AdamSettings) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        n, p, d = shape
        if settings.bases % len(groups):
            raise ValueError(f"{settings.bases} atoms do not share out over {len(groups)} banks")
        m = settings.bases // len(groups)
        self._groups = groups
        self._act = ACTIVATIONS[settings.activation]
        self._softmax = settings.codes == "softmax"
        self._banks = [torch.randn(m, settings.rank, d, generator=generator) for _ in groups]
        self._logits = torch.randn(n, m, generator=generator)
        if not self._softmax:
            self._logits -= math.log(m)
        self._adapters = torch.randn(n, p, settings.rank, generator=generator) * (
            0.1 / settings.rank**0.5
        )
        self.parts = {
            "adapters": [self._adapters],
            "bank": self._banks,
            "logits": [self._logits],
        }
        for parameter in (self._adapters, self._logits, *self._banks):
            parameter.requires_grad_(True)

    def reconstruct(self) -> Tensor:
        """All experts (N, p, d)."""
        codes = self._logits.softmax(1) if self._softmax else self._logits.exp()
        mixtures = torch.cat(
            [
                (codes[group] @ bank.flatten(1)).view(-1, *bank.shape[1:])
                for group, bank in zip(self._groups, self._banks, strict=True)
            ]
        )
        return torch.bmm(self._adapters, self._act(mixtures))
