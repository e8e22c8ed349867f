"""What an export tells about itself, when it is made and when it was complete already."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import Recipe, make_run

from globe_stream.export.baseline import export_svd
from globe_stream.export.dense import export_dense
from globe_stream.export.factors import export_factors
from globe_stream.export.result import ExportResult

Export = Callable[..., ExportResult]


@pytest.mark.parametrize("export", [export_dense, export_svd])
@pytest.mark.parametrize("most", [None, 3])
def test_dense_exports_stand_for_the_whole_checkpoint(
    model: Path, tmp_path: Path, export: Export, most: int | None
) -> None:
    run = make_run(tmp_path / "run", model, Recipe(max_experts=most))
    found = export(run, tmp_path / "out")
    assert found.source_bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))


def test_factors_stand_for_the_experts_they_replace(run: Path, tmp_path: Path) -> None:
    assert export_factors(run, tmp_path / "out").source_bytes == 2 * 12 * 24 * 32 * 2


@pytest.mark.parametrize("export", [export_dense, export_factors])
def test_a_complete_export_tells_a_real_peak(run: Path, tmp_path: Path, export: Export) -> None:
    made = export(run, tmp_path / "out")
    again = export(run, tmp_path / "out")
    assert again.note.startswith("It was complete already.")
    assert again.peak_bytes == pytest.approx(made.peak_bytes, rel=0.5)
