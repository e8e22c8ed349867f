"""Grids of options: all combinations, typed as the options are; one line for what is wrong."""

import itertools

import pytest

from globe_stream.commands.sweep.grid import grid_of, point_name, points_of
from globe_stream.config import METHODS, SeedConfig, TrainConfig


def test_texts_become_all_combinations():
    grid = grid_of(["bases=30,60", "target-support=12,none", "gain=0.5,1"], None, "ts_pca,svd")
    assert grid.names == ("bases", "target_support", "gain", "method")
    expected = itertools.product([30, 60], ["12", "none"], [0.5, 1.0], ["ts_pca", "svd"])
    assert [tuple(point.values()) for point in grid.points] == list(expected)


def test_without_anything_all_methods_are_compared():
    assert [point["method"] for point in grid_of((), None, None).points] == list(METHODS)


def test_a_file_has_a_grid_and_single_points(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        '[grid]\nmethod = ["ts_pca", "svd"]\nbases = [3]\n'
        "[[points]]\ntarget_support = 5\ndictionary_support = 10\n"
    )
    grid = grid_of(["rank=4,5"], path, None)
    assert len(grid.points) == 2 * 1 * 2 + 1
    points = points_of(grid, SeedConfig(bases=7), TrainConfig(epochs=1))
    assert [p.seeding.bases for p in points] == [3] * 4 + [7]
    assert points[-1].training is not None
    assert points[-1].training.support_target() == 5
    assert points[-1].seeding.dictionary_support == 10


def test_epochs_may_be_swept_and_shared_names_go_to_both():
    points = points_of(grid_of(["epochs=1,2", "lambda_a=0.5"], None, None), SeedConfig(), None)
    assert [p.training.epochs for p in points if p.training] == [1, 2]
    assert {p.seeding.lambda_a for p in points} == {0.5}
    assert {p.training.lambda_a for p in points if p.training} == {0.5}


def test_none_leaves_an_option_to_its_default():
    points = points_of(grid_of(["support_cap=none,3"], None, None), SeedConfig(), TrainConfig())
    assert [p.training.support_cap for p in points if p.training] == [None, 3]


def test_names_are_folders():
    name = point_name({"bank_scope": "layers:2", "kmeans_init": "kmeans++", "proxies": None})
    assert name == "bank_scope=layers-2,kmeans_init=kmeans++,proxies=none"
    long = [point_name({"method": "x" * 200, "bases": k}) for k in (1, 2)]
    assert long[0] != long[1]
    assert max(map(len, long)) < 140


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "bases"], ["--set 'bases'", "as bases=30,60"]),
        (["--set", "magic=1"], ["--set 'magic' is no option of seed or train"]),
        (["--set", "bases=a"], ["--set bases=a: a whole number is needed"]),
        (["--set", "bases=3,3"], ["more than once"]),
        (["--set", "bases=3,"], ["a value is missing"]),
        (["--set", "bases=3", "--set", "bases=4"], ["bases is swept twice"]),
        (["--set", "method=ts_pca", "--methods", "svd"], ["method is swept twice"]),
        (["--set", "gain=1"], ["--set gain: an option of train", "Give --epochs"]),
        (["--set", "method=magic"], ["point method=magic", "'magic' is not known"]),
        (["--set", "proxies=rows,svd", "--methods", "ts_pca"],
         ["point proxies=svd,method=ts_pca", "--proxies svd does not go with"]),
        (["--methods", "svd,svd"], ["more than once"]),
        (["--grid", "missing.toml"], ["missing.toml", "no such file"]),
        (["--grid", "empty.toml"], ["empty.toml: no option is swept"]),
        (["--grid", "wrong.toml"], ["wrong.toml [grid] 'magic' is no option"]),
        (["--grid", "other.toml"], ["other.toml: give a table [grid]"]),
        (["--grid", "scalar.toml"], ["scalar.toml [grid] bases: give a list of values"]),
        (["--epochs", "0"], ["--epochs 0 is out of range"]),
        (["--text", "missing.txt"], ["--text: models are made of trained runs", "--epochs"]),
        (["--text", "missing.txt", "--epochs", "1"], ["missing.txt"]),
        (["--out", "file"], ["file: not empty and not of a sweep"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(tell, checkpoint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "empty": "", "wrong": "[grid]\nmagic = [1]", "other": "bases = [1]",
        "scalar": "[grid]\nbases = 1",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    told = tell("sweep", checkpoint, "--families", "up", "--memory", "2GiB", *arguments)
    assert told.code == 2, told.err
    assert len(told.err.splitlines()) == 1, told.err
    for word in words:
        assert word in told.err
    assert sorted(tmp_path.iterdir()) == before
