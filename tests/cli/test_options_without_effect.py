"""Options that nothing reads beside the others are named, and are no other configuration."""

import pytest

pytestmark = pytest.mark.usefixtures("quick")
SEED = ("--families", "up", "--bases", 4, "--rank", 6)


def warnings(told):
    return [line for line in told.err.splitlines() if "without effect" in line]


def test_seed_names_them_and_continues_without_them(tmp_path, tell, checkpoint):
    command = ("seed", checkpoint, "--run", tmp_path / "run", *SEED, "--method", "left_gram_pca")
    told = tell(*command, "--kmeans-init", "farthest", "--sample-method", "evenly_spaced")
    assert told.code == 0, told.err
    assert warnings(told) == [
        "--sample-method: without effect without --max-experts",
        "--kmeans-init: without effect with --method left_gram_pca",
    ]
    again = tell(*command)
    assert (again.code, warnings(again)) == (0, [])
    other = tell(*command, "--pca-signs", "flip")
    assert other.code == 2
    assert "pca_signs: was 'simplex', now 'flip'" in other.err


def test_train_names_them_and_continues_without_them(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, *SEED).code == 0
    command = ("train", run, "--epochs", 1, "--warmup-epochs", 0, "--target-support", "none")
    told = tell(*command, "--temperature-rate", 1, "--lambda-t", 0.5)
    assert told.code == 0, told.err
    assert sorted(warnings(told)) == [
        "--lambda-t: without effect with --targets surrogate",
        "--temperature-rate: without effect with --target-support none",
    ]
    again = tell(*command)
    assert (again.code, warnings(again)) == (0, [])
    assert tell(*command, "--coherence", 0.1).code == 2


def test_a_recipe_names_them_as_its_keys(tmp_path, tell, checkpoint):
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'model = "{checkpoint}"\nrun = "{tmp_path}/run"\n'
        '[selection]\nfamilies = "up"\n[seed]\nbases = 4\nhybrid_ratio = 0.3\n'
    )
    told = tell("run", path)
    assert told.code == 0, told.err
    assert warnings(told) == ["hybrid_ratio: without effect with method nn_dictionary"]
