"""What the benchmarks share: running the tool through its library and reading its record back."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine.metrics import MetricRow, read_metrics
from globe_stream.engine.status import FamilyStatus

SUPPORT = "alpha/median_support"


@dataclass(frozen=True)
class Task:
    """Which experts, and how many parameters."""

    model: str
    selection: SelectionConfig
    seeding: SeedConfig


@dataclass(frozen=True)
class Curve:
    """A training run: per pass, the error that it measured and the seconds since training began."""

    errors: list[float]
    seconds: list[float]
    rejected: int
    seed_error: float
    seed_seconds: float
    svd_error: float
    parameter_ratio: float
    median_support: float

    def at(self, passes: int) -> tuple[float, float]:
        """(relF, seconds) of the `passes`-th pass, or of the last one after an early stop."""
        k = min(passes, len(self.errors)) - 1
        return self.errors[k], self.seconds[k]

    @property
    def worst_rise(self) -> float:
        """The largest ratio of the errors of two consecutive passes."""
        return worst_rise(self.errors)


def worst_rise(errors: list[float]) -> float:
    """The largest ratio of two consecutive errors."""
    return max((after / before for before, after in pairwise(errors)), default=1.0)


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A folder that is deleted afterwards, in `parent` or the system's place for temporary ones."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="globe-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train_curve(task: Task, training: TrainConfig, settings: RuntimeConfig, scratch: Path) -> Curve:
    """Seed and train in a folder below `scratch` that is deleted, and what `metrics.jsonl` says."""
    with scratch_folder(scratch) as run:
        seeded = seed(task.model, run / "run", task.selection, task.seeding, settings, silent=True)
        family = task.selection.family_names[0]
        start = seeded.families[family]
        train(run / "run", training, settings, silent=True)
        rows = read_metrics(run / "run" / "metrics.jsonl")
        rows = [row for row in rows if row.stage == "train"]
        assert isinstance(start, FamilyStatus)
        return _curve(rows, start, seeded.seconds)


def _curve(rows: list[MetricRow], start: FamilyStatus, seed_seconds: float) -> Curve:
    if len({row.family for row in rows}) > 1:
        raise ValueError("a curve is of one bank: use --bank-scope global")
    assert start.svd_equal_parameters_relative_error is not None
    return Curve(
        numbers(rows, "recon/relative_frobenius_error"),
        list(accumulate(numbers(rows, "time/step_seconds"))),
        int(sum(numbers(rows, "schedule/rejected"))),
        start.relative_frobenius_error,
        seed_seconds,
        start.svd_equal_parameters_relative_error,
        start.parameter_ratio,
        numbers(rows, SUPPORT)[-1],
    )


def numbers(rows: list[MetricRow], name: str) -> list[float]:
    """The metric `name` of those `rows` that have it, a number each."""
    found = [row.number(name) for row in rows if name in row.values]
    return [value for value in found if value is not None]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, columns padded so that it also reads well as text."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def machine_line() -> str:
    """The machine and what PyTorch was told about it."""
    return (
        f"{os.uname().machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"torch {torch.__version__}, float32 GEMM precision "
        f"{torch.get_float32_matmul_precision()}"
    )
