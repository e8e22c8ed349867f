"""Weights & Biases as a mirror of the metrics.

The library is imported only when a project is named. Without an API key, or with
WANDB_MODE=offline, nothing leaves the machine. A run directory keeps its tracker id, and a row's
step is its number in `metrics.jsonl`, so a continued run continues the same tracker run.
"""

import importlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from globe_stream.engine.metrics import MetricRow
from globe_stream.engine.trackers import decoded, tracked
from globe_stream.errors import InputError, option
from globe_stream.io import files
from globe_stream.io.records import Json

TRACKER_ID = "wandb-id"
"""The file of a run that holds its tracker id."""


class WandbTracker:
    """Sends metric rows to the tracker run that belongs to `directory`."""

    def __init__(
        self, directory: Path, project: str, config: Json, *, group: str | None, first_step: int
    ) -> None:
        """Begin or continue the run, of `group` if one is named; rows count from `first_step`.

        Raises InputError when the library is not installed.
        """
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f"{option('wandb_project')}: the wandb package is not installed. "
                "pip install 'globe-stream[wandb]', or leave the option out"
            ) from error
        self._step = first_step
        self._run = self._wandb.init(
            project=project,
            group=group,
            name=directory.resolve().name,
            id=_tracker_id(directory),
            resume="allow",
            dir=str(directory),
            mode=_mode(),
            config=config,
            allow_val_change=True,
        )
        self._run.define_metric("train/*", step_metric="epoch")

    def write(self, row: MetricRow) -> None:
        """Log the row: numbers and series as such, distributions as histograms."""
        found = tracked(row)
        values: dict[str, object] = dict(found.numbers)
        for name, numbers in found.distributions.items():
            values[name] = self._wandb.Histogram(numbers)
        stamps = {"epoch": row.epoch, "step": row.step}
        values |= {name: value for name, value in stamps.items() if value is not None}
        self._run.log(values, step=self._step)
        self._step += 1

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """Log the pictures, at the step of the last row."""
        images = {
            f"pictures/{title}": self._wandb.Image(decoded(png)) for title, png in pictures.items()
        }
        self._run.log(images, step=max(0, self._step - 1))

    def close(self) -> None:
        """Finish the tracker run."""
        self._run.finish()


def _mode() -> str | None:
    """The tracker's mode: the user's own choice, else offline when there is no key."""
    if os.environ.get("WANDB_MODE"):
        return None
    has_key = os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
    return None if has_key else "offline"


def _tracker_id(directory: Path) -> str:
    path = directory / TRACKER_ID
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()
