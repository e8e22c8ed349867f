"""A run finds its checkpoint from any folder, and is told where it went."""

import json
import shutil

import pytest
import support

pytestmark = pytest.mark.usefixtures("quick")

TRAINING = ("--epochs", 1, "--warmup-epochs", 0)
EXPORT = ("export", "run", "--format", "factors", "--out", "factors")


@pytest.fixture
def seeded(checkpoint, tmp_path, monkeypatch, tell):
    """A folder with a checkpoint "model" and its run "run", seeded from inside it."""
    shutil.copytree(checkpoint, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert tell("seed", "model", "--run", "run", "--families", "up").code == 0
    return tmp_path


def test_from_another_folder(seeded, monkeypatch, tell):
    monkeypatch.chdir(seeded / "run")
    assert tell("train", ".", *TRAINING).code == 0
    assert tell("export", ".", "--format", "factors", "--out", "../factors").code == 0
    config = json.loads((seeded / "factors" / "globe_config.json").read_text())
    assert config["model"] == "model"
    assert str(seeded) not in (seeded / "factors" / "README.md").read_text()


@pytest.mark.parametrize("command", [("train", "run"), EXPORT])
def test_a_checkpoint_that_went_away(seeded, tell, command):
    assert tell("train", "run", *TRAINING).code == 0
    (seeded / "model").rename(seeded / "moved")
    told = tell(*command)
    assert (told.code, told.out) == (2, "")
    assert f"{seeded / 'model'}: no such folder, and run was seeded from it" in told.err
    assert "the seed command again, with the folder of now and --run run" in told.err


def test_seeding_again_says_where_it_is_now(seeded, tell):
    (seeded / "model").rename(seeded / "moved")
    before = support.results(seeded / "run")
    assert tell("seed", "moved", "--run", "run", "--families", "up").code == 0
    assert support.results(seeded / "run") == before
    assert tell("train", "run", *TRAINING).code == 0
    assert tell("verify", "run").code == 0
    document = json.loads(tell("status", "run", "--json").out)
    assert document["config"]["model"] == str(seeded / "moved")
    assert f'model = "{seeded / "moved"}"' in (seeded / "run" / "config.toml").read_text()
