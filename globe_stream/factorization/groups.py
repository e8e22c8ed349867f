"""Groups of experts: one family within one bank's scope, the thing that has a bank.

Source: docs/design.md, section Problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from globe_stream.checkpoint.experts import ExpertMatrix, upright
from globe_stream.config import SeedConfig
from globe_stream.errors import InputError, option
from globe_stream.factorization.sizes import GroupSizes


@dataclass(frozen=True)
class ExpertGroup:
    """The experts that share a bank, in position order, and the bank's size."""

    key: str
    family: str
    experts: tuple[ExpertMatrix, ...]
    rank: int
    bases: int

    @property
    def sizes(self) -> GroupSizes:
        """Its sizes."""
        p, d = self.experts[0].shape
        per_weight = self.experts[0].nbytes / (p * d)
        return GroupSizes(len(self.experts), p, d, self.rank, self.bases, max(1, round(per_weight)))

    @property
    def proxy_dtype(self) -> torch.dtype:
        """Precision of the spilled proxies: that of the checkpoint, at least 16 bits."""
        return torch.float32 if self.experts[0].dtype == "F32" else torch.bfloat16


def make_groups(
    experts: Mapping[str, Sequence[ExpertMatrix]], families: Sequence[str], config: SeedConfig
) -> list[ExpertGroup]:
    """Cut the selected experts into groups.

    Raises InputError when shapes differ, or bases and rank do not fit the experts.
    """
    return [
        group
        for family in families
        for group in _family_groups(family, tuple(map(upright, experts[family])), config)
    ]


def _family_groups(
    family: str, experts: Sequence[ExpertMatrix], config: SeedConfig
) -> list[ExpertGroup]:
    span = config.scope_layers()
    if span is None:
        return [_group(family, family, tuple(experts), config)]
    layers = sorted({expert.layer for expert in experts})
    if span > len(layers):
        raise InputError(
            f"{option('bank_scope')} {config.bank_scope}: {len(layers)} layers are chosen. "
            "Use global for one bank of all of them, or a smaller K"
        )
    group_of = {layer: number // span for number, layer in enumerate(layers)}
    groups = []
    for _, members in groupby(experts, key=lambda expert: group_of[expert.layer]):
        chosen = tuple(members)
        key = f"{family}/layers-{chosen[0].layer:03d}-{chosen[-1].layer:03d}"
        groups.append(_group(key, family, chosen, config))
    return groups


def _group(
    key: str, family: str, experts: tuple[ExpertMatrix, ...], config: SeedConfig
) -> ExpertGroup:
    _require_one_shape(experts)
    p = experts[0].shape[0]
    rank = config.rank if config.rank is not None else max(1, round(config.rank_ratio * p))
    bases = (
        config.bases
        if config.bases is not None
        else max(1, round(config.basis_ratio * len(experts)))
    )
    if rank > p:
        raise InputError(
            f"{option('rank')} {rank}: larger than the experts' {p} rows ({family}). "
            f"Use at most {p}"
        )
    if bases > len(experts):
        raise InputError(
            f"{option('bases')} {bases}: more atoms than the {len(experts)} experts "
            f"that share the bank {key}. Use at most {len(experts)}, "
            f"or a wider {option('bank_scope')}"
        )
    return ExpertGroup(key, family, experts, rank, bases)


def _require_one_shape(experts: Sequence[ExpertMatrix]) -> None:
    first = experts[0]
    for expert in experts:
        if expert.shape != first.shape:
            raise InputError(
                f"{expert.where}: shape {expert.shape}, but {first.name} has {first.shape}; a bank "
                f"needs experts of one shape. Select layers of one shape with {option('layers')}"
            )
