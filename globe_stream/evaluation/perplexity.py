"""Bits per byte, perplexity, speed and memory of a language model on windows of text."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globe_stream.config import Windows
from globe_stream.engine.progress import ProgressCall
from globe_stream.evaluation.text import TokenWindow, bits_per_byte, read_windows
from globe_stream.io.records import Record
from globe_stream.memory.cost_model import COMPILED_BYTES, SLACK_BYTES
from globe_stream.memory.forward_pass import LOSS_POSITIONS, ForwardPass
from globe_stream.memory.meter import Meter

MAX_BATCH = 8


@dataclass(frozen=True)
class Score(Record):
    """A model's score on a text. `perplexity` is per token; times are of the forward passes."""

    bits_per_byte: float
    perplexity: float
    windows: int
    tokens: int
    bytes: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    price_bytes: int


def choose_batch(sizes: ForwardPass, length: int, memory: int | None, held: int) -> int:
    """The most windows at a time, up to 8, for which `memory` bytes suffice beside `held`."""
    spare = COMPILED_BYTES + SLACK_BYTES
    for batch in range(MAX_BATCH, 1, -1):
        if memory is None or held + sizes.bytes(batch, length) + spare <= memory:
            return batch
    return 1


def score(
    model: Any,
    text: Path,
    model_folder: Path,
    windows: Windows | None = None,
    *,
    memory: int | None = None,
    progress: ProgressCall | None = None,
) -> Score:
    """Score a loaded causal language model of `model_folder` on the text file `text`.

    Raises InputError when the text or the tokenizer is missing or too short.
    """
    chosen = windows or Windows()
    sizes = ForwardPass.of(model)
    read = read_windows(text, chosen, sizes.vocabulary, model_folder)
    meter = Meter()
    batch = choose_batch(sizes, chosen.length, memory, meter.now())
    with meter.stage("score"):
        start = time.perf_counter()
        nats = _negative_log_likelihood(model, read, batch, progress)
        seconds = time.perf_counter() - start
    predicted = sum(len(window.tokens) - 1 for window in read)
    size = sum(window.predicted_bytes for window in read)
    return Score(
        bits_per_byte=bits_per_byte(nats, size),
        perplexity=math.exp(nats / predicted),
        windows=len(read),
        tokens=predicted,
        bytes=size,
        seconds=seconds,
        tokens_per_second=predicted / seconds,
        peak_memory_bytes=meter.peak,
        price_bytes=sizes.bytes(batch, chosen.length),
    )


def _negative_log_likelihood(
    model: Any, windows: Sequence[TokenWindow], batch: int, progress: ProgressCall | None
) -> float:
    """In nats, over all predicted tokens, summed in float64."""
    total = 0.0
    for start in range(0, len(windows), batch):
        group = windows[start : start + batch]
        tokens = torch.stack([window.tokens for window in group]).to(model.device)
        total += float(window_losses(model, tokens).sum())
        if progress:
            progress(start + len(group), len(windows), "windows")
    return total


@torch.no_grad()
def window_losses(model: Any, tokens: Tensor) -> Tensor:
    """Negative log-likelihoods (b, n - 1) in nats, float64 on the CPU, of tokens (b, n), the
    first left out.

    Computed in slices of LOSS_POSITIONS, so that the logits (b, n, vocabulary) exist once.
    """
    logits = model(input_ids=tokens).logits
    targets = tokens[:, 1:].to(logits.device)
    losses = torch.empty(targets.shape, dtype=torch.float64)
    for start in range(0, targets.shape[1], LOSS_POSITIONS):
        stop = min(start + LOSS_POSITIONS, targets.shape[1])
        part = torch.nn.functional.cross_entropy(
            logits[:, start:stop].flatten(0, 1).float(),
            targets[:, start:stop].flatten(),
            reduction="none",
        )
        losses[:, start:stop] = part.view(len(tokens), -1).cpu()
    return losses
