"""TensorBoard as a mirror of the metrics: event files in a folder of the run."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from globe_stream.engine.metrics import MetricRow
from globe_stream.engine.trackers import decoded, tracked
from globe_stream.errors import InputError, option
from globe_stream.io.records import Json

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes metric rows as events below `directory`, a row's epoch being its step."""

    def __init__(self, directory: Path, config: Json) -> None:
        """Begin a new event file; InputError when the library is not installed."""
        try:
            library: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise InputError(
                f"{option('tensorboard')}: the tensorboard package is not installed. "
                "pip install 'globe-stream[tensorboard]', or leave the option out"
            ) from error
        self._writer = library.SummaryWriter(str(directory / FOLDER))
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")

    def write(self, row: MetricRow) -> None:
        """Add the row: numbers and series as scalars, distributions as histograms."""
        found, place = tracked(row), {"global_step": row.epoch or 0, "walltime": row.time}
        for name, number in found.numbers.items():
            self._writer.add_scalar(name, number, **place)
        for name, numbers in found.distributions.items():
            self._writer.add_histogram(name, np.asarray(numbers, dtype=np.float64), **place)

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """Add the pictures."""
        for title, png in pictures.items():
            self._writer.add_image(f"pictures/{title}", decoded(png), dataformats="HWC")

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()
