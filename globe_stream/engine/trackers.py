"""Weights & Biases as an optional mirror of the metrics.

The library is imported only when a project is named. Without an API key, or with
WANDB_MODE=offline, nothing leaves the machine. A run directory keeps its tracker id, so a
continued run continues the same tracker run.
"""

import importlib
import os
import uuid
from pathlib import Path
from typing import Any

from globe_stream.engine.metrics import MetricRow
from globe_stream.errors import InputError, option
from globe_stream.io import files


class WandbSink:
    """Sends metric rows to the tracker run that belongs to `directory`."""

    def __init__(self, directory: Path, project: str, config: dict[str, Any]) -> None:
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f"{option('wandb_project')}: the wandb package is not installed. "
                "pip install 'globe-stream[wandb]', or leave the option out"
            ) from error
        self._run = self._wandb.init(
            project=project,
            id=_tracker_id(directory),
            resume="allow",
            dir=str(directory),
            mode=_mode(),
            config=config,
        )

    def write(self, row: MetricRow) -> None:
        """Log the row's numbers under stage and family."""
        prefix = f"{row.stage}/{row.family}"
        numbers = {
            f"{prefix}/{name}": value
            for name, value in row.values.items()
            if isinstance(value, (int, float))
        }
        stamps = {"epoch": row.epoch, "step": row.step}
        numbers |= {name: value for name, value in stamps.items() if value is not None}
        self._run.log(numbers)

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
    path = directory / "wandb-id"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()
