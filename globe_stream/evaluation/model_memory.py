"""What loading and scoring a model takes, told before anything of it is read.

Sizes come from the model's structure, made without weights, and from the shards' headers.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.errors import InputError, option
from globe_stream.evaluation.models import Loading, build_empty
from globe_stream.evaluation.perplexity import estimate_scoring
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.formatting import format_bytes, parse_size
from globe_stream.memory.cost_model import COMPILED_BYTES, SLACK_BYTES
from globe_stream.memory.meter import measured_base


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of one model: the program, all weights, and what loading and scoring hold besides.

    `working` is the larger of a fused tensor and its parts, and of the arrays of one window;
    `vocabulary` its tokens.
    """

    base: int
    weights: int
    working: int
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
    index: ExpertIndex, sources: Sequence[TrainedRun], loading: Loading, length: int
) -> ModelMemory:
    """What the checkpoint of `index` takes, scored a window of `length` tokens at a time.

    While a model is loaded its stored bytes stay mapped beside the weights that are made of them.
    Of `sources` (runs to patch it with) the largest comes on top: see `factors_bytes`.
    """
    model = build_empty(index.root, loading)
    sizes = [tensor.numel() * tensor.element_size() for tensor in _tensors(model)]
    vocabulary = int(model.config.get_text_config().vocab_size)
    itemsize = model.dtype.itemsize
    del model
    gc.collect()
    stored = sum(header.size for header in index.headers)
    factors = max((factors_bytes(one, itemsize, loading.cache) for one in sources), default=0)
    working = max(2 * max(sizes), estimate_scoring(1, length, vocabulary))
    return ModelMemory(measured_base(), sum(sizes) + stored + factors, working, vocabulary)


def factors_bytes(source: TrainedRun, itemsize: int, cache: str | int) -> int:
    """Banks, adapters and codes of a run's factors, and the matrices that are kept composed."""
    held = composed = 0
    for fitted in source.groups:
        sizes = fitted.group.sizes
        adapters = sizes.experts * sizes.p * sizes.rank
        held += itemsize * (sizes.bases * sizes.rank * sizes.d + adapters)
        held += 4 * sizes.experts * sizes.bases
        composed += itemsize * sizes.experts * sizes.rank * sizes.d
    return held + min(composed, cache if isinstance(cache, int) else parse_size(cache))


def within_memory(needs: ModelMemory, loading: Loading, memory: int | None) -> Loading:
    """`loading` as it stays within `memory` bytes: with an offload folder, fewer weights are held.

    Raises InputError when it cannot.
    """
    if memory is None or (loading.offload is None and needs.total <= memory):
        return loading
    if loading.offload is None:
        raise InputError(
            f"{option('memory')} {format_bytes(memory)}: scoring needs {format_bytes(needs.total)} "
            f"({format_bytes(needs.base)} of it for the program itself, "
            f"{format_bytes(needs.weights)} for a model). Raise {option('memory')}, "
            f"give {option('offload')} DIR, or leave out {option('text')} to see errors only"
        )
    if needs.overhead >= memory:
        raise InputError(
            f"{option('memory')} {format_bytes(memory)}: scoring with {option('offload')} "
            f"needs more than {format_bytes(needs.overhead)}. Raise {option('memory')}, "
            f"or leave out {option('text')}"
        )
    return replace(loading, held=memory - needs.overhead)


def _tensors(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
