"""What loading and scoring a model takes, known before anything of it is read.

Sizes come from the model's structure, made without weights, and from the shards' headers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from globe_stream.errors import InputError, option
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.formatting import format_bytes
from globe_stream.memory.base import measured_base
from globe_stream.memory.cost_model import COMPILED_BYTES, SLACK_BYTES


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of one model: the program, all weights, and what loading and scoring hold besides.

    `working` is the larger of a fused tensor and its parts, and of `scoring`, the arrays of one
    window; `vocabulary` its tokens.
    """

    base: int
    weights: int
    working: int
    scoring: int
    vocabulary: int

    @property
    def overhead(self) -> int:
        """All but the weights."""
        return self.base + self.working + COMPILED_BYTES + SLACK_BYTES

    @property
    def total(self) -> int:
        """The memory that loading and scoring need."""
        return self.overhead + self.weights


def estimate_model(
    model: Any, stored: int, sources: Sequence[TrainedRun], cache: int, scoring: int
) -> ModelMemory:
    """What a checkpoint of `stored` bytes takes, `model` being its structure on the meta device.

    While a model is loaded its stored bytes stay mapped beside the weights that are made of them.
    Of `sources` (runs to patch it with) the largest comes on top: see `factors_bytes`, `cache`
    being the bytes of matrices kept composed. `scoring` are the bytes of scoring one window.
    """
    sizes = [tensor.numel() * tensor.element_size() for tensor in _tensors(model)]
    vocabulary = int(model.config.get_text_config().vocab_size)
    factors = max((factors_bytes(one, model.dtype.itemsize, cache) for one in sources), default=0)
    working = max(2 * max(sizes), scoring)
    weights = sum(sizes) + stored + factors
    return ModelMemory(measured_base(), weights, working, scoring, vocabulary)


def factors_bytes(source: TrainedRun, itemsize: int, cache: int) -> int:
    """Banks, adapters and codes of a run's factors, and the matrices that are kept composed."""
    held = composed = 0
    for fitted in source.groups:
        sizes = fitted.group.sizes
        adapters = sizes.experts * sizes.p * sizes.rank
        held += itemsize * (sizes.bases * sizes.rank * sizes.d + adapters)
        held += 4 * sizes.experts * sizes.bases
        composed += itemsize * sizes.experts * sizes.rank * sizes.d
    return held + min(composed, cache)


def held_weights(needs: ModelMemory, memory: int | None, *, offload: bool) -> int | None:
    """How many bytes of weights may stay in memory within `memory` bytes; None means all.

    With `offload` fewer may be held than there are. Raises InputError when it cannot be done.
    """
    if memory is None or (not offload and needs.total <= memory):
        return None
    if not offload:
        raise InputError(
            f"{option('memory')} {format_bytes(memory)}: scoring needs {format_bytes(needs.total)} "
            f"({format_bytes(needs.base)} of it for the program itself, "
            f"{format_bytes(needs.weights)} for a model, {format_bytes(needs.scoring)} for a "
            f"window of text). Raise {option('memory')}, give {option('offload')} DIR, choose a "
            f"shorter {option('window_length')}, or leave out {option('text')} to see errors only"
        )
    if needs.overhead >= memory:
        raise InputError(
            f"{option('memory')} {format_bytes(memory)}: scoring with {option('offload')} "
            f"needs more than {format_bytes(needs.overhead)}, {format_bytes(needs.scoring)} of it "
            f"for a window of text. Raise {option('memory')}, choose a shorter "
            f"{option('window_length')}, or leave out {option('text')}"
        )
    return memory - needs.overhead


def _tensors(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
