"""The example of an Optuna search runs, and goes on where it ended."""

import runpy
import sys
from pathlib import Path

import pytest

import globe_stream
from globe_stream.commands.status import status

SCRIPT = Path(globe_stream.__file__).parents[1] / "pipelines" / "search.py"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_search_goes_on_and_prints_trials_that_no_other_beats(
    checkpoint, tmp_path, monkeypatch, capsys
):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out = tmp_path / "search"
    for trials in (2, 4, 4):
        arguments = [str(checkpoint), "--out", out, "--trials", trials, "--epochs", 2]
        monkeypatch.setattr(sys, "argv", ["search.py", *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert len(list(out.glob("trial-*"))) == trials
    found = []
    for run in sorted(out.glob("trial-*")):
        up = status(run).families["up"]
        found.append((up.parameter_ratio, up.relative_frobenius_error))
    best = [a for a in found if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in found)]
    printed = capsys.readouterr().out.splitlines()[-len(best) :]
    for (kept, error), line in zip(sorted(best), printed, strict=True):
        assert f"relF {error:.4f}, {kept:.1%} kept" in line
