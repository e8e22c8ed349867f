"""Runs of separate layers, joined, are the run of all layers, byte for byte."""

import json
import shutil

import pytest
import support

from globe_stream.cli.main import run as command_line
from globe_stream.commands.merge import merge
from globe_stream.commands.verify import verify
from globe_stream.errors import InputError
from globe_stream.store.run import Run

pytestmark = pytest.mark.usefixtures("quick")

OPTIONS = ("--bank-scope", "layer", "--rank", "6", "--bases", "4", "--memory", "2GiB")


def make(model, run, *more, train=True):
    seed = ["seed", str(model), "--run", str(run), *OPTIONS, *more]
    assert command_line(seed) == 0
    if train:
        arguments = ["train", str(run), "--epochs", "2", "--warmup-epochs", "1"]
        assert command_line([*arguments, "--memory", "2GiB"]) == 0
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return support.write_checkpoint(tmp_path_factory.mktemp("model"), layers=3, experts=6)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """The whole, the first two layers and the last one; up alone in those."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        whole = make(model, folder / "whole", "--families", "up")
        head = make(model, folder / "head", "--families", "up", "--layers", "0:2")
        last = make(model, folder / "last", "--families", "up", "--single-layer", "2")
        return whole, head, last


@pytest.mark.slow
def test_the_parts_are_the_whole(runs, tmp_path):
    whole, head, last = runs
    status = merge(tmp_path / "out", [last, head])
    assert support.results(tmp_path / "out") == support.results(whole)
    assert status.state == "trained"
    assert verify(tmp_path / "out").problems == ()
    one, other = (Run(path, writable=False) for path in (tmp_path / "out", whole))
    assert one.header == other.header
    assert (tmp_path / "out" / "config.toml").read_text() == (whole / "config.toml").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert sorted(row["family"] for row in rows if row["stage"] == "train") == [
        f"up/layers-{layer:03d}-{layer:03d}" for layer in (0, 0, 1, 1, 2, 2)
    ]


@pytest.mark.slow
def test_other_machines_have_the_checkpoint_elsewhere(runs, model, tmp_path):
    whole, head, _ = runs
    last = ("--families", "up", "--single-layer", "2")
    there = make(shutil.copytree(model, tmp_path / model.name), tmp_path / "there", *last)
    merge(tmp_path / "out", [head, there])
    assert support.results(tmp_path / "out") == support.results(whole)
    other = make(shutil.copytree(model, tmp_path / "other"), tmp_path / "run", *last)
    with pytest.raises(InputError, match=r"model: was '.*', now 'other'"):
        merge(tmp_path / "none", [head, other])


@pytest.mark.slow
def test_it_continues_like_the_whole(runs, tmp_path):
    whole = shutil.copytree(runs[0], tmp_path / "whole")
    merge(tmp_path / "out", runs[1:])
    for run in (whole, tmp_path / "out"):
        assert command_line(["train", str(run), "--epochs", "3", "--warmup-epochs", "1"]) == 0
    assert support.results(tmp_path / "out") == support.results(whole)


@pytest.mark.slow
def test_a_merge_that_was_cut_off_continues(runs, tmp_path, monkeypatch):
    from globe_stream.commands import merge as module

    adopt, adopted = module.adopt, []

    def one(run, source, group):
        if adopted:
            raise KeyboardInterrupt
        adopted.append(group)
        adopt(run, source, group)

    monkeypatch.setattr(module, "adopt", one)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "out", runs[1:])
    monkeypatch.undo()
    merge(tmp_path / "out", runs[1:])
    assert support.results(tmp_path / "out") == support.results(runs[0])


@pytest.mark.slow
def test_overlaps_and_gaps_are_named(runs, model, tmp_path):
    whole, head, last = runs
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"up/layers-000-000: both .*head and .*whole have it"):
        merge(out, [head, whole])
    with pytest.raises(InputError, match="last: given twice"):
        merge(out, [last, last.parent / "." / "last"])
    first = make(model, tmp_path / "first", "--families", "up", "--single-layer", "0")
    with pytest.raises(InputError, match=r"up/layers-001-001: none of the runs has it.* 1:2"):
        merge(out, [first, last])
    assert not out.exists()


@pytest.mark.slow
def test_banks_of_all_layers_cannot_be_joined(model, tmp_path):
    scope = ("--bank-scope", "global", "--single-layer")
    apart = [make(model, tmp_path / layer, *scope, layer, train=False) for layer in "01"]
    with pytest.raises(InputError, match=r"both .* have it.*bank_scope.* layer"):
        merge(tmp_path / "out", apart)


@pytest.mark.slow
def test_other_options_and_unfinished_runs_are_named(runs, model, tmp_path):
    out = tmp_path / "out"
    seeded = make(
        model, tmp_path / "seeded", "--families", "up", "--single-layer", "2", train=False
    )
    with pytest.raises(InputError, match=r"seeded: not of the same model and options .*epochs"):
        merge(out, [runs[1], seeded])
    other = make(model, tmp_path / "other", "--families", "up", "--layers", "0:2", "--seed", "1",
                 train=False)  # fmt: skip
    with pytest.raises(InputError, match="seed seed: was 0, now 1"):
        merge(out, [seeded, other])
    assert not out.exists()
