"""What every optional mirror of the metrics has in common: Weights & Biases, TensorBoard.

A tracker takes the rows of `metrics.jsonl`, each metric as what it is: a number, a distribution
(a list of numbers, such as the popularity of atoms) or one series for each key of a mapping (such
as the error of every layer).
"""

import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from pydantic import JsonValue

from globe_stream.engine.metrics import MetricRow, Sink


class Tracker(Sink, Protocol):
    """A mirror of the metrics that can show pictures, too."""

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """Take `pictures`, PNG files by title."""


@dataclass(frozen=True)
class TrackedRow:
    """The metrics of a row by `stage/family/name`."""

    numbers: dict[str, float] = field(default_factory=dict)
    distributions: dict[str, list[float]] = field(default_factory=dict)


def tracked(row: MetricRow) -> TrackedRow:
    """The numbers and distributions of `row`; texts and what is not known are left out."""
    found = TrackedRow()
    for name, value in row.values.items():
        _take(found, f"{row.stage}/{row.family}/{name}", value)
    return found


def decoded(png: bytes) -> np.ndarray[Any, Any]:
    """The pixels (height, width, 3) uint8 of a PNG file."""
    library: Any = importlib.import_module("PIL.Image")
    pixels: np.ndarray[Any, Any] = np.asarray(library.open(io.BytesIO(png)).convert("RGB"))
    return pixels


def _take(found: TrackedRow, name: str, value: JsonValue) -> None:
    if isinstance(value, (int, float)):
        found.numbers[name] = value
    elif isinstance(value, dict):
        for key, item in value.items():
            _take(found, f"{name}/{key}", item)
    elif isinstance(value, list):
        numbers = [item for item in value if isinstance(item, (int, float))]
        if numbers:
            found.distributions[name] = numbers
