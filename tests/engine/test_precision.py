"""Exports multiply as their run did, where that is exact, and leave the setting as it was."""

from pathlib import Path

import pytest
import torch

from globe_stream.engine import precision
from globe_stream.engine.device import Machine
from globe_stream.engine.precision import arithmetic_of
from globe_stream.engine.records import MACHINE
from globe_stream.io.records import Record
from globe_stream.store.run import Run


@pytest.fixture
def recorded(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", Record())
    run.commit({MACHINE: Machine("cpu", "asked for", 1, "medium", "measured")})
    return run


def test_the_run_decides_and_the_setting_is_restored(
    recorded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "product_error", lambda: 3e-7)
    torch.set_float32_matmul_precision("highest")
    with arithmetic_of(recorded):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_precision_that_is_not_exact_here_is_not_used(
    recorded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "product_error", lambda: 2e-3)
    with arithmetic_of(recorded):
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_error_is_measured_against_float64() -> None:
    torch.set_float32_matmul_precision("highest")
    assert 1e-9 < precision.product_error() < 2e-6
