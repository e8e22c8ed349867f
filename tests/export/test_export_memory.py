"""Peak memory of an export, in a process of its own."""

from pathlib import Path

import pytest
from measured import export_within, run_measured
from sample_runs import Recipe, larger_model, make_run

from globe_stream.config import SyntheticModel
from globe_stream.errors import InputError
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.memory.cost_model import COMPILED_BYTES, DECLARED_BASE_BYTES, SLACK_BYTES
from globe_stream.memory.planner import plan_export
from globe_stream.synthetic.checkpoints import write_synthetic


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one 12 MiB bank a family, on a checkpoint of 96 MiB."""
    folder = tmp_path_factory.mktemp("large")
    write_synthetic(
        folder / "model",
        SyntheticModel(layers=4, experts=12, hidden=1024, intermediate=512),
        shard_bytes=40 << 20,
    )
    recipe = Recipe(bases=16, rank=192, support=4, lam=1.0, measured=False)
    return make_run(folder / "run", folder / "model", recipe)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a model that has all its parts."""
    folder = tmp_path_factory.mktemp("whole")
    larger_model(folder / "model", experts=12, hidden=1024, intermediate=512)
    recipe = Recipe(bases=16, rank=192, support=4, lam=1.0, measured=False)
    return make_run(folder / "run", folder / "model", recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("dense", 108 << 20),
        ("factors", 124 << 20),
        ("model 8,8", 152 << 20),
        ("factors 8,8", 176 << 20),
    ],
)
def test_peak_stays_within_budget_and_bytes(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, budget: int
) -> None:
    run = request.getfixturevalue("whole" if kind.startswith("model") else "large")
    ended = run_measured(export_within, [kind, str(run), str(tmp_path / "out")], budget)
    found = ended.document
    assert max(ended.peak, found["peak"]) <= found["base"] + budget
    assert found["peak"] <= 1.1 * found["price"]
    arrays = found["price"] - found["base"] - COMPILED_BYTES  # an export compiles few kernels
    assert found["peak"] - found["base"] >= 0.6 * arrays


def test_a_budget_leaves_the_slack_of_every_stage(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("globe_stream.memory.planner.measured_base", lambda: DECLARED_BASE_BYTES)
    with open_trained_run(run) as source:
        groups = [fitted.group for fitted in source.groups]
    generous = plan_export(groups, None)
    assert generous.estimate_bytes > DECLARED_BASE_BYTES + COMPILED_BYTES
    assert plan_export(groups, generous.estimate_bytes + SLACK_BYTES) == generous
    assert (
        plan_export(groups, generous.estimate_bytes + SLACK_BYTES - 1).estimate_bytes
        < generous.estimate_bytes
    )
    with pytest.raises(InputError, match="export needs at least"):
        plan_export(groups, DECLARED_BASE_BYTES + SLACK_BYTES + COMPILED_BYTES)
