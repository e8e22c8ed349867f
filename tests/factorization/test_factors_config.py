"""globe_config.json: read back as it was written, refused in one line when it does not fit."""

import json
import shutil

import pytest
from sample_runs import Recipe, make_run, tiny_model

from globe_stream.errors import InputError
from globe_stream.export.factors import export_factors
from globe_stream.factorization.factors_config import CONFIG, read_factors_config
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.inference.factors import load_factors

RECIPE = Recipe(families=("up",), per_layer=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factors")
    run = make_run(folder / "run", tiny_model(folder / "model"), RECIPE)
    export_factors(run, folder / "out", dtype="fp32", memory=None)
    return folder


def test_it_says_what_the_run_recorded(exported):
    config = read_factors_config(exported / "out")
    with open_trained_run(exported / "run") as source:
        assert config.model == "model"
        assert config.fingerprint == source.index.fingerprint()
        assert list(config.units) == ["up/layers-000-000", "up/layers-001-001"]
        for fitted in source.groups:
            unit = config.units[fitted.group.key]
            assert unit.phi == fitted.activation
            assert (unit.p, unit.d, unit.rank, unit.bases) == (24, 32, RECIPE.rank, RECIPE.bases)
            assert unit.offset == unit.normalisation.mean == RECIPE.mean
            assert unit.relative_frobenius_error == fitted.state.relative_frobenius_error
    errors = [unit.relative_frobenius_error for unit in config.units.values()]
    assert min(errors) - 1e-3 < config.relative_frobenius_error["up"] < max(errors) + 1e-3


def test_the_file_has_the_published_keys(exported):
    stored = json.loads((exported / "out" / CONFIG).read_text())
    assert set(stored) == {
        "format", "kind", "dtype", "model", "revision", "model_type", "fingerprint",
        "relative_frobenius_error", "reconstruction", "units", "calibration",
    }  # fmt: skip
    assert set(stored["units"]["up/layers-000-000"]) == {
        "family", "tensors", "layers", "experts", "p", "d", "rank", "bases", "parameter_ratio",
        "activation", "lambda", "gain", "scale", "offset", "normalisation",
        "relative_frobenius_error", "bits",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda config: config.update(extra=1), "extra is not known"),
        (lambda config: config.pop("units"), "units is missing"),
        (
            lambda config: config["units"]["up/layers-000-000"].pop("lambda"),
            "units.up/layers-000-000.lambda is missing",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(exported, tmp_path, edit, reason):
    folder = tmp_path / "out"
    shutil.copytree(exported / "out", folder)
    stored = json.loads((folder / CONFIG).read_text())
    edit(stored)
    (folder / CONFIG).write_text(json.dumps(stored))
    with pytest.raises(InputError) as raised:
        load_factors(folder)
    said = str(raised.value)
    assert said.startswith(f"{folder / CONFIG}: {reason}. ")
    assert said.endswith("export the factors again")
    assert "\n" not in said


def test_a_torn_description_is_one_line(exported, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(exported / "out", folder)
    (folder / CONFIG).write_text('{"format": 1,')
    with pytest.raises(InputError, match=r"not JSON .*export the factors again"):
        load_factors(folder)
