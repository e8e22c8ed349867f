"""What the experts of every layer are given while a model reads text: X^T X of their inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globe_stream.config import Windows
from globe_stream.errors import InputError, option
from globe_stream.evaluation.text import has_tokenizer, read_text, read_windows
from globe_stream.factorization.input_metric import AddMoment
from globe_stream.memory.forward_pass import ForwardPass

LENGTH = 256
"""Tokens that the model reads at a time."""
MOST_TOKENS = 1 << 17
LEAST_SHARE = 8
"""Tokens for each of the d channels of the inputs, of which there must be as many at least."""
_MOST_WINDOWS = 16
_BATCH_BYTES = 512 << 20
_BYTES_PER_TOKEN = 4  # about what a tokenizer makes of text


def windows_of(
    texts: Sequence[Path], vocabulary: int, model_folder: Path, width: int
) -> list[Tensor]:
    """Windows (LENGTH,) of tokens spread over `texts`, as many of each text, in their order.

    At most MOST_TOKENS in all. Raises InputError for a text that cannot be read, a model without
    tokenizer, and fewer than LEAST_SHARE tokens for each of `width` channels.
    """
    most = max(1, MOST_TOKENS // LENGTH // len(texts))
    bytes_a_token = 1 if not has_tokenizer(model_folder) else _BYTES_PER_TOKEN
    found: list[Tensor] = []
    for text in texts:
        stride = max(len(read_text(text)) // most, LENGTH * bytes_a_token)
        windows = Windows(count=most, length=LENGTH, stride=stride)
        read = read_windows(text, windows, vocabulary, model_folder)
        found += [window.tokens for window in read]
    if (tokens := len(found) * LENGTH) < LEAST_SHARE * width:
        raise InputError(
            f"{option('calibrate')} {', '.join(map(str, texts))}: {tokens:,} tokens say too little "
            f"of inputs of {width:,} channels: {LEAST_SHARE * width:,} are needed. Give more text"
        )
    return found


def windows_together(sizes: ForwardPass) -> int:
    """How many windows are read at a time; it depends on the model alone, so results do too."""
    return max(1, min(_MOST_WINDOWS, _BATCH_BYTES // sizes.bytes(1, LENGTH)))


@torch.no_grad()
def add_moments(model: Any, modules: Mapping[int, Any], tokens: Tensor, add: AddMoment) -> None:
    """Let the model read tokens (b, n) and `add` the moments of the inputs of `modules`, by layer.

    Tokens are on the CPU, and so is the model, but for weights that are on disk.
    The first argument of such a module is X (..., d).
    """
    with _noting(modules, add):
        model.base_model(input_ids=tokens, use_cache=False)


@contextmanager
def _noting(modules: Mapping[int, Any], add: AddMoment) -> Iterator[None]:
    def note_of(layer: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def note(_: Any, given: tuple[Tensor, ...]) -> None:
            inputs = given[0].flatten(0, -2).float()
            add(layer, inputs.T @ inputs)

        return note

    hooks = [module.register_forward_pre_hook(note_of(k)) for k, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
