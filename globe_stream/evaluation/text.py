"""Windows of a text file as tokens, for models over bytes and models with a tokenizer."""

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globe_stream.config import Windows
from globe_stream.errors import InputError
from globe_stream.io.system_errors import explained

BYTE_VOCABULARY = 256
_BYTES_PER_TOKEN = 16  # more than any tokenizer's average, so that a window is always filled


@dataclass(frozen=True)
class TokenWindow:
    """Tokens (n,) int64 of one window, and the bytes of text that the predicted ones stand for."""

    tokens: Tensor
    predicted_bytes: int


def read_windows(
    path: Path, windows: Windows, vocabulary: int, model_folder: Path
) -> list[TokenWindow]:
    """The windows of the text at `path` for a model in `model_folder` with `vocabulary` tokens.

    A model over 256 tokens without a tokenizer is one over bytes. Windows that would start
    beyond the end of the text are left out. Raises InputError when the text is too short for one
    window, or the model needs a tokenizer and has none.
    """
    data = read_text(path)
    starts = [k * windows.stride for k in range(windows.count)]
    if vocabulary == BYTE_VOCABULARY and not has_tokenizer(model_folder):
        cut = [data[start : start + windows.length] for start in starts]
        read = [
            TokenWindow(torch.tensor(list(part)), len(part) - 1)
            for part in cut
            if len(part) == windows.length
        ]
    else:
        tokenizer = _tokenizer(model_folder)
        span = windows.length * _BYTES_PER_TOKEN
        read = [
            window
            for start in starts
            if start < len(data)
            for window in _tokenized(tokenizer, data[start : start + span], windows.length)
        ]
    if not read:
        raise InputError(
            f"{path}: {len(data)} bytes are too few for one window of "
            f"{windows.length} tokens. Use a longer text or a shorter window"
        )
    return read


def read_text(path: Path) -> bytes:
    """The bytes of the text file; InputError when it cannot be read."""
    with explained(path, "reading the text"):
        return path.read_bytes()


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder holds a tokenizer."""
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    return any((folder / name).exists() for name in names)


def _tokenizer(folder: Path) -> Any:
    if not has_tokenizer(folder):
        raise InputError(
            f"{folder}: has no tokenizer, and its vocabulary is not that of bytes. "
            "Put the model's tokenizer files beside its weights"
        )
    transformers = importlib.import_module("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def _tokenized(tokenizer: Any, data: bytes, length: int) -> list[TokenWindow]:
    """At most one window: the first `length` tokens of `data`, if there are as many."""
    tokens = tokenizer(data.decode("utf-8", errors="ignore"))["input_ids"][:length]
    if len(tokens) < length:
        return []
    predicted = tokenizer.decode(tokens[1:], skip_special_tokens=True)
    return [TokenWindow(torch.tensor(tokens), len(predicted.encode()))]


def bits_per_byte(nats: float, count: int) -> float:
    """Negative log-likelihood `nats` of `count` bytes of text, in bits for each."""
    return nats / math.log(2) / count
